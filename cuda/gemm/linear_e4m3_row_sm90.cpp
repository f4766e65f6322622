// A linear layer of class e4m3_row on Hopper: quantize rows, one GEMM, the rest of the epilogue where there is one.
//
// Alignment is settled here: K is padded to 16 in the codes of x, which are written anew anyway. A weight whose K or N
// the tensor memory accelerator refuses is copied into padded scratch on every call, which is slow and right.
#include <climits>

#include "device/device.hpp"
#include "kernels.hpp"

namespace octavo::cuda {
namespace {

std::int64_t round_up(std::int64_t n, std::int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

bool plain(const Epilogue& e) {
  return e.bias == nullptr && e.norm == NormKind::none && e.activation == Activation::none &&
         e.residual.data == nullptr;
}

struct Weight {
  const void* codes;
  const float* scale;
};

// The weight as the GEMM wants it: itself, or a zero-padded copy [n, k] in scratch.
Status padded_weight(const PackedWeight& w, std::int64_t n, std::int64_t k, cudaStream_t stream, StreamBuffer& codes,
                     StreamBuffer& scale, Weight& out) {
  out = {w.codes(), w.scale()};
  if (n == w.n() && k == w.k()) return {};
  const std::size_t bytes = static_cast<std::size_t>(n) * static_cast<std::size_t>(k);
  if (Status s = codes.allocate(bytes); !s.ok()) return s;
  if (Status s = scale.allocate(static_cast<std::size_t>(n) * 4); !s.ok()) return s;
  if (Status s = checked(cudaMemsetAsync(codes.as<void>(), 0, bytes, stream), "padded weight"); !s.ok()) return s;
  if (Status s =
          checked(cudaMemsetAsync(scale.as<void>(), 0, static_cast<std::size_t>(n) * 4, stream), "padded weight");
      !s.ok())
    return s;
  const auto source_k = static_cast<std::size_t>(w.k());
  if (source_k > 0)
    if (Status s =
            checked(cudaMemcpy2DAsync(codes.as<void>(), static_cast<std::size_t>(k), w.codes(), source_k, source_k,
                                      static_cast<std::size_t>(w.n()), cudaMemcpyDeviceToDevice, stream),
                    "padded weight");
        !s.ok())
      return s;
  out = {codes.as<void>(), scale.as<float>()};
  return checked(cudaMemcpyAsync(scale.as<void>(), w.scale(), static_cast<std::size_t>(w.n()) * 4,
                                 cudaMemcpyDeviceToDevice, stream),
                 "padded weight");
}

}  // namespace

Status linear_e4m3_row_sm90(const LinearArgs& args) {
  if (Status status = validate(args, Numerics::e4m3_row); !status.ok()) return status;
  if (args.x_scale != nullptr || args.y_scale != nullptr)
    return Status::unsupported("linear: the CUDA kernel takes and gives no eight-bit codes; pass floats");
  if (args.epilogue.saved.data != nullptr)
    return Status::unsupported("linear: the CUDA kernel keeps nothing for a backward; use backward='fp32'");
  const std::int64_t m = args.x.rows, n = args.weight->n();
  if (m == 0 || n == 0) return {};
  const std::int64_t k = round_up(args.x.cols > 0 ? args.x.cols : 1, 16), padded_n = round_up(n, 8);
  if (m > INT_MAX || padded_n > INT_MAX || k > INT_MAX)
    return Status::unsupported("linear: the CUDA kernel takes up to 2^31 - 1 rows and columns; split the batch");
  const DeviceGuard guard(args.x.data);
  const auto stream = static_cast<cudaStream_t>(args.stream);

  StreamBuffer codes(stream), scale(stream), weight_codes(stream), weight_scale(stream), product(stream);
  if (Status s = codes.allocate(static_cast<std::size_t>(m * k)); !s.ok()) return s;
  if (Status s = scale.allocate(static_cast<std::size_t>(m) * 4); !s.ok()) return s;
  const QuantizeArgs quantize{.x = args.x,
                              .format = DType::e4m3,
                              .scaling = Scaling::row,
                              .codes = codes.as<void>(),
                              .scale = scale.as<float>(),
                              .stream = args.stream};
  if (Status s = quantize_e4m3_row_padded(quantize, k); !s.ok()) return s;
  Weight weight{};
  if (Status s = padded_weight(*args.weight, padded_n, k, stream, weight_codes, weight_scale, weight); !s.ok())
    return s;

  GemmE4m3Row gemm{codes.as<void>(), weight.codes,        scale.as<float>(),          weight.scale,        args.y.data,
                   args.y.dtype,     static_cast<int>(m), static_cast<int>(padded_n), static_cast<int>(k), stream};
  const bool contiguous = args.y.row_stride == n || m == 1;
  const bool aligned = reinterpret_cast<std::uintptr_t>(args.y.data) % 16 == 0;
  if (plain(args.epilogue) && padded_n == n && contiguous && aligned) return gemm_e4m3_row_sm90(gemm);

  if (Status s = product.allocate(static_cast<std::size_t>(m * padded_n) * 4); !s.ok()) return s;
  gemm.d = product.as<void>();
  gemm.d_dtype = DType::f32;
  if (Status s = gemm_e4m3_row_sm90(gemm); !s.ok()) return s;
  return finish_linear(product.as<float>(), padded_n, args.epilogue, args.y, stream);
}

}  // namespace octavo::cuda
