// The vocabulary every other header is written in: element types, devices, views without ownership, status.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>

namespace octavo {

// u4: unsigned, two codes a byte, the even column in the low bits; its strides count bytes.
enum class DType : std::uint8_t { f32, bf16, f16, e4m3, e5m2, i8, u8, i32, i64, u4 };
enum class Device : std::uint8_t { cpu, cuda };

// Bytes of an element as strides count them.
constexpr std::size_t size_of(DType dtype) {
  switch (dtype) {
    case DType::i64: return 8;
    case DType::f32:
    case DType::i32: return 4;
    case DType::bf16:
    case DType::f16: return 2;
    default: return 1;
  }
}

// Bytes that `dim` elements take one after the other.
constexpr std::int64_t packed_bytes(DType dtype, std::int64_t dim) {
  return dtype == DType::u4 ? (dim + 1) / 2 : dim * static_cast<std::int64_t>(size_of(dtype));
}

// A strided matrix someone else owns. Strides count elements; the inner stride is always 1.
struct MatrixView {
  void* data = nullptr;
  std::int64_t rows = 0;
  std::int64_t cols = 0;
  std::int64_t row_stride = 0;
  DType dtype = DType::f32;
};

// [batch, rows, cols] that someone else owns; strides count elements, and that of the rows or of the columns is 1.
struct BatchView {
  const void* data = nullptr;
  std::int64_t rows = 0, cols = 0;
  std::int64_t batch_stride = 0, row_stride = 0, col_stride = 1;
  DType dtype = DType::f32;
};

// What went wrong, in words a caller can act on. The core neither prints, throws nor aborts.
enum class Code : std::uint8_t { ok, invalid_argument, out_of_range, unsupported, out_of_memory, internal };

class [[nodiscard]] Status {
 public:
  Status() = default;
  Status(Code code, std::string message) : code_(code), message_(std::move(message)) {}

  static Status invalid(std::string message) { return {Code::invalid_argument, std::move(message)}; }
  static Status range(std::string message) { return {Code::out_of_range, std::move(message)}; }
  static Status unsupported(std::string message) { return {Code::unsupported, std::move(message)}; }

  bool ok() const { return code_ == Code::ok; }
  Code code() const { return code_; }
  const std::string& message() const { return message_; }

 private:
  Code code_ = Code::ok;
  std::string message_;
};

}  // namespace octavo
