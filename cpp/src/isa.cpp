#include "octavo/isa.hpp"

#include <atomic>
#include <cstdlib>

#if defined(__x86_64__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace octavo {
namespace {

#if defined(__x86_64__)
// Linux lets a process use tile data once it has asked for it.
bool tiles_are_granted() {
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM
  return __builtin_cpu_supports("amx-tile") && __builtin_cpu_supports("amx-bf16") &&
         __builtin_cpu_supports("amx-int8") && syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}
#endif

CpuFeatures detect() {
  CpuFeatures f;
#if defined(__x86_64__)
  __builtin_cpu_init();
  f.avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  f.avx512 = f.avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  f.avx512_bf16 = f.avx512 && __builtin_cpu_supports("avx512bf16");
  f.avx512_vnni = f.avx512 && __builtin_cpu_supports("avx512vnni");
  f.avx512_vbmi = f.avx512 && __builtin_cpu_supports("avx512vbmi");
  f.amx = f.avx512_bf16 && f.avx512_vnni && f.avx512_vbmi && tiles_are_granted();
#endif
  return f;
}

const CpuFeatures& machine() {
  static const CpuFeatures features = detect();
  return features;
}

constexpr CpuFeatures kNone{};
constexpr CpuFeatures kAvx2{.avx2 = true};

const CpuFeatures& without_tiles() {
  static const CpuFeatures features = [] {
    CpuFeatures f = machine();
    f.amx = false;
    return f;
  }();
  return features;
}

thread_local const CpuFeatures* pretended = nullptr;

std::atomic<Isa>& level() {
  static std::atomic<Isa> current = [] {
    const CpuFeatures& f = machine();
    const Isa best = f.amx ? Isa::amx : f.avx512 ? Isa::avx512 : f.avx2 ? Isa::avx2 : Isa::baseline;
    const char* forced = std::getenv("OCTAVO_ISA");
    Isa wanted = best;
    if (forced != nullptr && isa_from_string(forced, wanted) && wanted < best) return wanted;
    return best;
  }();
  return current;
}

}  // namespace

bool isa_from_string(const std::string& name, Isa& isa) {
  for (const Isa candidate : {Isa::baseline, Isa::avx2, Isa::avx512, Isa::amx})
    if (name == to_string(candidate)) {
      isa = candidate;
      return true;
    }
  return false;
}

PretendedFeatures::PretendedFeatures(const CpuFeatures& features) { pretended = &features; }
PretendedFeatures::~PretendedFeatures() { pretended = nullptr; }

const CpuFeatures& cpu_features() {
  if (pretended != nullptr) return *pretended;
  switch (active_isa()) {
    case Isa::baseline: return kNone;
    case Isa::avx2: return kAvx2;
    case Isa::avx512: return without_tiles();
    default: return machine();
  }
}

Isa active_isa() { return level().load(std::memory_order_relaxed); }

const char* to_string(Isa isa) {
  switch (isa) {
    case Isa::baseline: return "baseline";
    case Isa::avx2: return "avx2";
    case Isa::avx512: return "avx512";
    default: return "amx";
  }
}

bool force_isa(const std::string& name) {
  Isa wanted;
  if (!isa_from_string(name, wanted)) return false;
  if (wanted == Isa::amx && !machine().amx) return false;
  if (wanted == Isa::avx512 && !machine().avx512) return false;
  if (wanted == Isa::avx2 && !machine().avx2) return false;
  level().store(wanted, std::memory_order_relaxed);
  return true;
}

}  // namespace octavo
