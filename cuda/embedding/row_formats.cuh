// Rows of tables in 16 bytes (INT4: 8) a thread: raw words first, so that several rows can be under way, then FP32.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>

#include "embedding/device_tables.hpp"
#include "octavo/float8.hpp"

namespace octavo::cuda {

// The first `valid` of kBytes bytes from p on, zeros after them. `alignment`: of p, 16 (for 8 bytes: 8), 4 or 1.
template <int kBytes>
__device__ inline void load_words(const std::uint8_t* p, int valid, int alignment, unsigned (&w)[4]) {
#pragma unroll
  for (int i = 0; i < 4; ++i) w[i] = 0;
  if (valid >= kBytes && alignment == 16) {
    if constexpr (kBytes == 16) {
      const uint4 all = __ldg(reinterpret_cast<const uint4*>(p));
      w[0] = all.x, w[1] = all.y, w[2] = all.z, w[3] = all.w;
    } else {
      const uint2 all = __ldg(reinterpret_cast<const uint2*>(p));
      w[0] = all.x, w[1] = all.y;
    }
  } else if (valid >= kBytes && alignment >= 4) {
#pragma unroll
    for (int i = 0; i < kBytes / 4; ++i) w[i] = __ldg(reinterpret_cast<const unsigned*>(p) + i);
  } else {
#pragma unroll
    for (int i = 0; i < kBytes; ++i)
      if (i < valid) w[i / 4] |= static_cast<unsigned>(p[i]) << i % 4 * 8;
  }
}

// A format has the bytes and columns of a thread's part of a row, and decode: raw words to those columns.
struct F32Rows {
  static constexpr int kBytes = 16, kPart = 4;
  __device__ static void decode(const unsigned (&w)[4], float (&x)[kPart]) {
#pragma unroll
    for (int i = 0; i < 4; ++i) x[i] = __uint_as_float(w[i]);
  }
};

struct Bf16Rows {
  static constexpr int kBytes = 16, kPart = 8;
  __device__ static void decode(const unsigned (&w)[4], float (&x)[kPart]) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      x[2 * i] = __uint_as_float(w[i] << 16);
      x[2 * i + 1] = __uint_as_float(w[i] & 0xffff0000u);
    }
  }
};

struct F16Rows {
  static constexpr int kBytes = 16, kPart = 8;
  __device__ static float half(unsigned bits) {
    __half_raw raw;
    raw.x = static_cast<unsigned short>(bits);
    return __half2float(__half(raw));
  }
  __device__ static void decode(const unsigned (&w)[4], float (&x)[kPart]) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      x[2 * i] = half(w[i] & 0xffffu);
      x[2 * i + 1] = half(w[i] >> 16);
    }
  }
};

struct E4m3Rows {
  static constexpr int kBytes = 16, kPart = 16;
  __device__ static void decode(const unsigned (&w)[4], float (&x)[kPart]) {
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const auto pair = static_cast<__nv_fp8x2_storage_t>(w[i / 2] >> i % 2 * 16);
      const __half2_raw halves = __nv_cvt_fp8x2_to_halfraw2(pair, __NV_E4M3);
      x[2 * i] = F16Rows::half(halves.x);
      x[2 * i + 1] = F16Rows::half(halves.y);
    }
  }
};

struct Int8Rows {
  static constexpr int kBytes = 16, kPart = 16;
  __device__ static void decode(const unsigned (&w)[4], float (&x)[kPart]) {
#pragma unroll
    for (int i = 0; i < 16; ++i) x[i] = static_cast<float>(w[i / 4] >> i % 4 * 8 & 0xffu);
  }
};

struct Int4Rows {
  static constexpr int kBytes = 8, kPart = 16;
  __device__ static void decode(const unsigned (&w)[4], float (&x)[kPart]) {
#pragma unroll
    for (int i = 0; i < 16; ++i) x[i] = static_cast<float>(w[i / 8] >> i % 8 * 4 & 0xfu);
  }
};

// What a row's codes are multiplied by and what every column gets on top.
struct RowAffine {
  float scale, bias;
};
__device__ inline RowAffine affine_of(const DeviceTable& t, std::int64_t row) {
  switch (t.dtype) {
    case DType::e4m3:
      return {t.exponents != nullptr ? decode_e8m0(t.exponents[row]) : t.scale[row * t.scale_stride], 0};
    case DType::u8:
    case DType::u4: return {t.scale[row * t.scale_stride], t.scale[row * t.scale_stride + 1]};
    default: return {1.0f, 0.0f};
  }
}

// visit<Format>() for a table's rows.
template <class Visit>
__device__ void with_format(DType dtype, Visit&& visit) {
  switch (dtype) {
    case DType::f32: return visit.template operator()<F32Rows>();
    case DType::f16: return visit.template operator()<F16Rows>();
    case DType::bf16: return visit.template operator()<Bf16Rows>();
    case DType::e4m3: return visit.template operator()<E4m3Rows>();
    case DType::u8: return visit.template operator()<Int8Rows>();
    default: return visit.template operator()<Int4Rows>();
  }
}

}  // namespace octavo::cuda
