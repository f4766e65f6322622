#include "octavo/registry.hpp"

#include <deque>
#include <mutex>

namespace octavo {

struct Registry::Rows {
  std::mutex mutex;
  std::deque<KernelInfo> rows;  // a deque never moves what it holds
};

const char* to_string(Op op) {
  switch (op) {
    case Op::linear: return "linear";
    case Op::quantize: return "quantize";
    case Op::bag_forward: return "bag_forward";
    case Op::bag_backward: return "bag_backward";
    case Op::linear_epilogue_backward: return "linear_epilogue_backward";
    case Op::linear_grad_input: return "linear_grad_input";
    case Op::linear_grad_weight: return "linear_grad_weight";
    case Op::pairwise_dots: return "pairwise_dots";
    case Op::add_norm: return "add_norm";
    case Op::row_lookup: return "row_lookup";
    default: return "find_rows";
  }
}

const char* to_string(Qualification state) {
  switch (state) {
    case Qualification::unknown: return "unknown";
    case Qualification::trusted: return "trusted";
    case Qualification::qualified: return "qualified";
    default: return "quarantined";
  }
}

std::vector<std::string> needed_features(const KernelInfo& kernel) {
  CpuFeatures all;
  for (const NamedFeature& feature : kNamedFeatures) all.*feature.has = true;
  std::vector<std::string> needed;
  for (const NamedFeature& feature : kNamedFeatures) {
    CpuFeatures rest = all;
    rest.*feature.has = false;
    const PretendedFeatures pretended(rest);
    if (!kernel.is_supported()) needed.emplace_back(feature.name);
  }
  return needed;
}

Registry::Registry() : rows_(new Rows) {}

Registry& Registry::instance() {
  static Registry* registry = [] {
    auto* r = new Registry;  // never destroyed: kernels may run during interpreter shutdown
    register_quantize_kernels(*r);
    register_linear_kernels(*r);
    register_embedding_kernels(*r);
    register_linear_backward_kernels(*r);
    register_pairwise_kernels(*r);
    register_add_norm_kernels(*r);
#ifdef OCTAVO_WITH_CUDA
    register_cuda_kernels(*r);
    register_cuda_gemm_kernels(*r);
#endif
    return r;
  }();
  return *registry;
}

Status Registry::add(KernelInfo info) {
  const std::scoped_lock lock(rows_->mutex);
  for (const KernelInfo& row : rows_->rows)
    if (row.name == info.name) return Status::invalid("register: a kernel named " + info.name + " exists already");
  rows_->rows.push_back(std::move(info));
  return {};
}

KernelInfo* Registry::find(std::string_view name) {
  const std::scoped_lock lock(rows_->mutex);
  for (KernelInfo& row : rows_->rows)
    if (row.name == name) return &row;
  return nullptr;
}

std::vector<KernelInfo*> Registry::all() {
  const std::scoped_lock lock(rows_->mutex);
  std::vector<KernelInfo*> out;
  for (KernelInfo& row : rows_->rows) out.push_back(&row);
  return out;
}

}  // namespace octavo
