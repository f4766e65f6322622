// Names, checks and bookkeeping shared by every linear kernel.
#include "octavo/linear.hpp"

namespace octavo {

const char* to_string(Numerics numerics) {
  switch (numerics) {
    case Numerics::fp32: return "fp32";
    case Numerics::bf16: return "bf16";
    case Numerics::e4m3_row: return "e4m3_row";
    case Numerics::e4m3_weight_only: return "e4m3_weight_only";
    case Numerics::e4m3_row_fast: return "e4m3_row_fast";
    case Numerics::e4m3_block: return "e4m3_block";
    default: return "int8_dynamic";
  }
}

DType weight_format(Numerics numerics) {
  switch (numerics) {
    case Numerics::fp32: return DType::f32;
    case Numerics::bf16: return DType::bf16;
    case Numerics::int8_dynamic: return DType::i8;
    default: return DType::e4m3;
  }
}

const void* PackedWeight::layout(const void* tag, std::size_t bytes, void (*fill)(const PackedWeight&, void*)) const {
  const std::scoped_lock lock(mutex_);
  for (const auto& entry : layouts_)
    if (entry->tag == tag) return entry->buffer.data();
  AlignedBuffer buffer(bytes);
  fill(*this, buffer.data());
  layouts_.push_back(std::make_unique<Entry>(Entry{tag, std::move(buffer)}));
  return layouts_.back()->buffer.data();
}

std::size_t PackedWeight::layout_bytes() const {
  const std::scoped_lock lock(mutex_);
  std::size_t total = 0;
  for (const auto& entry : layouts_) total += entry->buffer.size();
  return total;
}

namespace {
bool is_float(DType dtype) { return dtype == DType::f32 || dtype == DType::bf16; }
std::string shape(const MatrixView& v) { return "[" + std::to_string(v.rows) + ", " + std::to_string(v.cols) + "]"; }
}  // namespace

Status validate(const LinearArgs& args, Numerics numerics) {
  if (args.weight == nullptr) return Status::invalid("linear: weight is missing");
  const PackedWeight& w = *args.weight;
  const Epilogue& e = args.epilogue;
  if (w.format() != weight_format(numerics))
    return Status::invalid(std::string("linear: the weight is not packed for class ") + to_string(numerics) +
                           "; pack it with the format of that class");
  if (w.scaling() != weight_scaling(numerics))
    return Status::invalid(std::string("linear: the weight's scales are not those of class ") + to_string(numerics) +
                           ": e4m3_block has one per 128 x 128, the others one per row; pack it for that class");
  const bool by_rows = w.scaling() == Scaling::row, has_codes = w.format() != DType::bf16 && w.format() != DType::f32;
  if (has_codes ? w.scale() == nullptr && (by_rows || w.k() > 0) : w.scale() != nullptr)
    return Status::invalid("linear: weight codes in e4m3 and int8 need scales, others have none");
  if (args.x.cols != w.k())
    return Status::invalid("linear: x is " + shape(args.x) + " but weight is [" + std::to_string(w.n()) + ", " +
                           std::to_string(w.k()) + "]: the last dimension of x must be " + std::to_string(w.k()));
  if (args.y.rows != args.x.rows || args.y.cols != w.n())
    return Status::invalid("linear: out is " + shape(args.y) + ", expected [" + std::to_string(args.x.rows) + ", " +
                           std::to_string(w.n()) + "]");
  if (!is_float(args.x.dtype)) {
    const bool rounded = numerics == Numerics::e4m3_row || numerics == Numerics::e4m3_row_fast ||
                         numerics == Numerics::e4m3_block || numerics == Numerics::int8_dynamic;
    if (!rounded || args.x.dtype != weight_format(numerics))
      return Status::invalid(std::string("linear: x must be float32 or bfloat16") +
                             (rounded ? std::string(", or quantized as class ") + to_string(numerics) + " does" : ""));
    if (args.x_scale == nullptr && args.x.rows > 0 && (by_rows || w.k() > 0))
      return Status::invalid("linear: codes of x need their scales");
  }
  if (!is_float(args.y.dtype)) {
    if (args.y.dtype != DType::e4m3 && args.y.dtype != DType::i8)
      return Status::invalid("linear: out must be float32, bfloat16, or codes in e4m3 or int8");
    if (args.y_scale == nullptr && args.y.rows > 0) return Status::invalid("linear: codes of out need a scale per row");
  }
  if (e.residual.data != nullptr) {
    if (!is_float(e.residual.dtype)) return Status::invalid("linear: residual must be float32 or bfloat16");
    const bool shared = e.residual_rows != nullptr;
    if (shared && e.residual.rows == 0 && args.y.rows > 0)
      return Status::invalid("linear: residual has no rows, but residual_rows names some");
    if ((!shared && e.residual.rows != args.y.rows) || e.residual.cols != args.y.cols)
      return Status::invalid("linear: residual is " + shape(e.residual) + ", expected " + shape(args.y));
  }
  if (e.residual_rows != nullptr && (e.residual.data == nullptr || e.saved.data != nullptr))
    return Status::invalid("linear: residual_rows needs a residual, and cannot be recorded for a backward");
  if (e.saved.data != nullptr &&
      (e.saved.dtype != args.y.dtype || e.saved.rows != args.y.rows || e.saved.cols != args.y.cols))
    return Status::invalid("linear: saved is " + shape(e.saved) + ", expected " + shape(args.y) + " of out's type");
  if (e.norm == NormKind::block && (e.norm_weight != nullptr || e.norm_bias != nullptr))
    return Status::invalid("linear: block norm has no parameters; norm weight and bias must be None");
  if ((e.norm == NormKind::rms || e.norm == NormKind::swish_rms) && e.norm_bias != nullptr)
    return Status::invalid("linear: RMS norm has no bias; norm bias must be None");
  if (e.norm == NormKind::swish_rms && e.activation != Activation::none)
    return Status::invalid("linear: SwishRMSNorm is its own activation; activation must be None");
  if (e.norm == NormKind::block && e.norm_block <= 0) return Status::invalid("linear: norm block must be positive");
  return {};
}

}  // namespace octavo
