// The scalar codecs: every code, every midpoint, the ends of the range.
#include "octavo/float8.hpp"

#include <gtest/gtest.h>

#include <cmath>

namespace octavo {
namespace {

TEST(Float8, E4m3KnownValues) {
  EXPECT_EQ(decode_e4m3(0x00), 0.0f);
  EXPECT_EQ(decode_e4m3(0x01), 0x1p-9f);
  EXPECT_EQ(decode_e4m3(0x07), 7 * 0x1p-9f);
  EXPECT_EQ(decode_e4m3(0x08), 0x1p-6f);
  EXPECT_EQ(decode_e4m3(0x38), 1.0f);
  EXPECT_EQ(decode_e4m3(0x7e), 448.0f);
  EXPECT_EQ(decode_e4m3(0xfe), -448.0f);
  EXPECT_TRUE(std::isnan(decode_e4m3(0x7f)) && std::isnan(decode_e4m3(0xff)));
}

TEST(Float8, E5m2KnownValues) {
  EXPECT_EQ(decode_e5m2(0x01), 0x1p-16f);
  EXPECT_EQ(decode_e5m2(0x04), 0x1p-14f);
  EXPECT_EQ(decode_e5m2(0x3c), 1.0f);
  EXPECT_EQ(decode_e5m2(0x7b), 57344.0f);
  EXPECT_EQ(decode_e5m2(0x7c), std::numeric_limits<float>::infinity());
  EXPECT_TRUE(std::isnan(decode_e5m2(0x7d)));
}

// Codes of finite magnitudes increase with it, so midpoints of neighbours probe every rounding decision.
template <class Encode, class Decode>
void expect_nearest_even(int top, Encode encode, Decode decode) {
  for (int code = 0; code < top; ++code) {
    const float low = decode(static_cast<std::uint8_t>(code)), high = decode(static_cast<std::uint8_t>(code + 1));
    const float middle = low + (high - low) / 2;  // exact
    EXPECT_EQ(encode(low), code);
    EXPECT_EQ(encode(-high), (code + 1) | 0x80);
    EXPECT_EQ(encode(middle), code % 2 == 0 ? code : code + 1);
    EXPECT_EQ(encode(std::nextafterf(middle, 0.0f)), code);
    EXPECT_EQ(encode(std::nextafterf(middle, high)), code + 1);
  }
}

TEST(Float8, RoundsToNearestEven) {
  expect_nearest_even(0x7e, [](float v) { return encode_e4m3(v); }, [](std::uint8_t c) { return decode_e4m3(c); });
  expect_nearest_even(0x7b, [](float v) { return encode_e5m2(v); }, [](std::uint8_t c) { return decode_e5m2(c); });
}

TEST(Float8, SaturatesAndKeepsNan) {
  const float infinity = std::numeric_limits<float>::infinity();
  for (const float v : {449.0f, 464.1f, 1e30f, infinity}) {
    EXPECT_EQ(encode_e4m3(v), 0x7e);
    EXPECT_EQ(encode_e4m3(-v), 0xfe);
  }
  for (const float v : {61441.0f, 1e30f, infinity}) EXPECT_EQ(encode_e5m2(v), 0x7b);
  EXPECT_EQ(encode_e4m3(std::numeric_limits<float>::quiet_NaN()) & 0x7f, 0x7f);
  EXPECT_TRUE(std::isnan(decode_e5m2(encode_e5m2(std::numeric_limits<float>::quiet_NaN()))));
}

TEST(Float8, Bf16RoundsToNearestEvenAndQuietsNan) {
  EXPECT_EQ(encode_bf16(1.0f), 0x3f80);
  EXPECT_EQ(encode_bf16(1.0f + 0x1p-8f), 0x3f80);  // a tie goes to the even code
  EXPECT_EQ(encode_bf16(1.0f + 0x1p-8f + 0x1p-20f), 0x3f81);
  EXPECT_EQ(encode_bf16(1.0f + 3 * 0x1p-8f), 0x3f82);
  EXPECT_EQ(encode_bf16(std::bit_cast<float>(0x7f800001u)), 0x7fc0);
  for (std::uint32_t bits = 0; bits < 0x7f80; ++bits)
    EXPECT_EQ(encode_bf16(decode_bf16(static_cast<std::uint16_t>(bits))), bits);
}

}  // namespace
}  // namespace octavo
