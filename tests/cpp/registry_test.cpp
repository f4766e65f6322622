#include "octavo/registry.hpp"

#include <gtest/gtest.h>

#include <set>

#include "levels.hpp"

namespace octavo::testing {
namespace {

TEST(Registry, NamesAreUniqueAndSayWhatTheyAre) {
  std::set<std::string> names;
  for (const KernelInfo* kernel : Registry::instance().all()) {
    EXPECT_TRUE(names.insert(kernel->name).second) << kernel->name;
    EXPECT_EQ(Registry::instance().find(kernel->name), kernel);
    if (kernel->op == Op::linear && kernel->library == "octavo") {
      EXPECT_TRUE(kernel->name.ends_with(std::string(".linear.") + to_string(kernel->numerics))) << kernel->name;
    }
  }
  EXPECT_EQ(Registry::instance().find("no.such.kernel"), nullptr);
}

TEST(Registry, EveryClassHasAGenericKernelAtEveryLevel) {
  at_every_level([] {
    for (const Numerics numerics : {Numerics::bf16, Numerics::e4m3_row, Numerics::e4m3_weight_only,
                                    Numerics::int8_dynamic, Numerics::e4m3_block}) {
      const KernelInfo* kernel = Registry::instance().find(std::string("cpu.generic.linear.") + to_string(numerics));
      ASSERT_NE(kernel, nullptr);
      EXPECT_TRUE(kernel->is_supported());
      EXPECT_EQ(kernel->numerics, numerics);
    }
  });
}

TEST(Registry, HandWrittenKernelsFollowTheForcedLevel) {
  const KernelInfo* kernel = Registry::instance().find("cpu.avx512.linear.int8_dynamic");
  if (kernel == nullptr) GTEST_SKIP() << "not an x86-64 build";
  at_every_level([&] {
    EXPECT_EQ(kernel->is_supported(), cpu_features().avx512_vnni);
    EXPECT_FALSE(active_isa() < Isa::avx512 && kernel->is_supported());
  });
}

TEST(Registry, Int32SumsThatCouldWrapGoToTheGenericKernel) {
  const KernelInfo* kernel = Registry::instance().find("cpu.avx512.linear.int8_dynamic");
  if (kernel == nullptr) GTEST_SKIP() << "not an x86-64 build";
  EXPECT_TRUE(kernel->accepts(1, 1, 133144));
  EXPECT_FALSE(kernel->accepts(1, 1, 133145));
  EXPECT_FALSE(Registry::instance().find("cpu.generic.linear.int8_dynamic")->accepts);
}

TEST(Registry, ANameThatExistsIsRefused) {
  KernelInfo row;
  row.name = "cpu.generic.linear.bf16";
  const Status status = Registry::instance().add(row);
  EXPECT_EQ(status.code(), Code::invalid_argument);
  EXPECT_NE(status.message().find("cpu.generic.linear.bf16 exists already"), std::string::npos);
}

TEST(Registry, UnknownLevelsAreRefused) {
  const Isa before = active_isa();
  EXPECT_FALSE(force_isa("sse9"));
  EXPECT_EQ(active_isa(), before);
}

}  // namespace
}  // namespace octavo::testing
