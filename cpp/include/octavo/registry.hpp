// One table of kernels: octavo's own and those of other libraries.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "octavo/add_norm.hpp"
#include "octavo/embedding.hpp"
#include "octavo/id_map.hpp"
#include "octavo/isa.hpp"
#include "octavo/linear.hpp"
#include "octavo/linear_backward.hpp"
#include "octavo/linear_batch.hpp"
#include "octavo/pairwise.hpp"
#include "octavo/quantize.hpp"

namespace octavo {

enum class Op : std::uint8_t {
  linear,
  quantize,
  bag_forward,
  bag_backward,
  linear_epilogue_backward,
  linear_grad_input,
  linear_grad_weight,
  pairwise_dots,
  row_lookup,
  find_rows,
  add_norm,
};
const char* to_string(Op op);

enum class Qualification : std::uint8_t { unknown, trusted, qualified, quarantined };
const char* to_string(Qualification state);

// What a kernel costs before anyone measured it: overhead + work / rate + bytes / bandwidth.
struct CostPrior {
  double overhead_us = 1.0;
  double gmacs_per_s = 1.0;    // per thread (CPU) or whole device (CUDA)
  double gbytes_per_s = 10.0;  // likewise
};

struct Problem;  // dispatch.hpp

using QuantizeLauncher = Status (*)(const QuantizeArgs&);

struct Launchers {
  LinearLauncher linear = nullptr;
  LinearBatchLauncher linear_batch = nullptr;  // where several layers can be one launch
  QuantizeLauncher quantize = nullptr;
  BagForwardLauncher bag_forward = nullptr;
  RowLookupLauncher row_lookup = nullptr;
  BagBackwardLauncher bag_backward = nullptr;
  FindRowsLauncher find_rows = nullptr;
  EpilogueBackwardLauncher epilogue_backward = nullptr;
  GradInputLauncher grad_input = nullptr;
  GradWeightLauncher grad_weight = nullptr;
  GradientsLauncher gradients = nullptr;  // of a row of grad_input and one of grad_weight that work together
  PairwiseLauncher pairwise_dots = nullptr;
  AddNormLauncher add_norm = nullptr;
  AddNormBackwardLauncher add_norm_backward = nullptr;  // of the same row
};

struct KernelInfo {
  std::string name;  // library.arch.op.class for octavo's: cpu.avx512.linear.e4m3_row
  Op op = Op::linear;
  std::string library = "octavo";
  Device device = Device::cpu;
  Numerics numerics = Numerics::fp32;  // linear, its gradients and pairwise_dots
  DType product = DType::f32;     // linear and its gradients: what the product is rounded to before anything follows
  DType norm_input = DType::f32;  // linear, y not FP32: what norms that take no mean off may see rounded, then y again
  double tolerance = 1e-5;        // of FP32 outputs' largest element, to qualify: what the kernel's sums keep
  bool takes_codes = false;       // linear only: x and y may be eight-bit codes with a scale per row
  std::string formats;            // others: what the kernel reads and writes, in words
  bool deterministic = true;
  bool only_measured = false;  // chosen only for problems it was timed on: its first calls are slow (it compiles)
  CostPrior cost;
  std::function<double(const Problem&)> estimate_us;  // before anyone measured; empty: by the prior
  std::function<bool()> supported;                    // ISA or architecture of this machine; empty: everywhere
  std::function<bool(std::int64_t m, std::int64_t n, std::int64_t k)> accepts;  // empty: every shape
  Launchers run;  // empty for other libraries: octavo.ops runs them
  Qualification state = Qualification::unknown;
  std::string note;         // why it was quarantined
  std::uint64_t calls = 0;  // counted by the caller, one thread at a time (in Python: under the interpreter lock)

  bool is_supported() const { return !supported || supported(); }
  bool may_be_chosen() const { return state == Qualification::trusted || state == Qualification::qualified; }
};

// Whether these rows of grad_input and grad_weight have one launcher of both.
inline bool work_together(const KernelInfo& grad_input, const KernelInfo& grad_weight) {
  return grad_input.op == Op::linear_grad_input && grad_weight.op == Op::linear_grad_weight &&
         grad_input.run.gradients != nullptr && grad_input.run.gradients == grad_weight.run.gradients;
}

// Names of the CPU features without any of which a kernel is not supported, whatever this machine has.
std::vector<std::string> needed_features(const KernelInfo& kernel);

// Rows live as long as the process and never move.
class Registry {
 public:
  static Registry& instance();

  Status add(KernelInfo info);  // a name that exists is refused
  KernelInfo* find(std::string_view name);
  std::vector<KernelInfo*> all();

 private:
  Registry();
  struct Rows;
  Rows* rows_;
};

// Each kernel family appends its rows (cpp/src/cpu/rows, cuda/rows.cpp): one file, one row.
void register_quantize_kernels(Registry& registry);
void register_linear_kernels(Registry& registry);
void register_linear_backward_kernels(Registry& registry);
void register_embedding_kernels(Registry& registry);
void register_pairwise_kernels(Registry& registry);
void register_add_norm_kernels(Registry& registry);
#ifdef OCTAVO_WITH_CUDA
void register_cuda_kernels(Registry& registry);
void register_cuda_gemm_kernels(Registry& registry);
#endif

}  // namespace octavo
