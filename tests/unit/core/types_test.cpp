// 16- and 8-bit floats: every value of every format comes back, and every midpoint between neighbours rounds as documented.
#include "tq4/types.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "tq4/error.h"

namespace tq4 {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

// Codes 0..largest are the non-negative finite values in ascending order. `ties_up`: halves away from zero, else to even codes.
template <class Code, class ToFloat, class FromFloat>
void check_rounding(Code largest, Code sign_bit, bool ties_up, ToFloat to, FromFloat from) {
  for (unsigned i = 0; i <= largest; ++i) {
    const auto code = static_cast<Code>(i);
    const float value = to(code);
    ASSERT_EQ(from(value), code);
    ASSERT_EQ(from(-value), static_cast<Code>(code | sign_bit));
    ASSERT_EQ(to(static_cast<Code>(code | sign_bit)), -value);
    if (code == largest) break;
    const auto next = static_cast<Code>(code + 1);
    ASSERT_LT(value, to(next));
    const double exact = 0.5 * (static_cast<double>(value) + static_cast<double>(to(next)));
    const auto middle = static_cast<float>(exact);
    if (static_cast<double>(middle) != exact) continue;  // below fp32's own resolution
    ASSERT_EQ(from(middle), ties_up || code % 2 != 0 ? next : code) << "code " << i;
    ASSERT_EQ(from(-middle), static_cast<Code>((ties_up || code % 2 != 0 ? next : code) | sign_bit)) << "code " << i;
  }
}

template <class Code, class ToFloat, class FromFloat>
void check_neighbours_of_midpoints(Code largest, ToFloat to, FromFloat from) {
  for (unsigned i = 0; i < largest; ++i) {
    const float value = to(static_cast<Code>(i)), above = to(static_cast<Code>(i + 1));
    const float middle = value + 0.5f * (above - value);
    ASSERT_EQ(from(std::nextafter(middle, kInf)), i + 1) << "code " << i;
    ASSERT_EQ(from(std::nextafter(middle, 0.0f)), i) << "code " << i;
  }
}

TEST(Half, RoundsToNearestEven) {
  check_rounding<std::uint16_t>(0x7bff, 0x8000, false, half_to_float, float_to_half);
  check_neighbours_of_midpoints<std::uint16_t>(0x7bff, half_to_float, float_to_half);
}

TEST(Half, OverflowAndNan) {
  EXPECT_EQ(half_to_float(0x3c00), 1.0f);
  EXPECT_EQ(half_to_float(0x7bff), 65504.0f);
  EXPECT_EQ(half_to_float(0x0001), 0x1p-24f);
  EXPECT_EQ(float_to_half(65519.996f), 0x7bff);
  EXPECT_EQ(float_to_half(65520.0f), 0x7c00);
  EXPECT_EQ(float_to_half(1e30f), 0x7c00);
  EXPECT_EQ(float_to_half(-kInf), 0xfc00);
  EXPECT_EQ(half_to_float(0xfc00), -kInf);
  EXPECT_TRUE(std::isnan(half_to_float(float_to_half(kNan))));
  EXPECT_TRUE(std::isnan(half_to_float(float_to_half(std::bit_cast<float>(0x7f800001u)))));  // a NaN with only low bits
  EXPECT_TRUE(std::isnan(half_to_float(0x7c01)));
  EXPECT_EQ(float_to_half(std::numeric_limits<float>::denorm_min()), 0);
}

TEST(Bf16, RoundsToNearestEven) {
  check_rounding<std::uint16_t>(0x7f7f, 0x8000, false, bf16_to_float, float_to_bf16);
  EXPECT_EQ(float_to_bf16(std::numeric_limits<float>::max()), 0x7f80);
  EXPECT_EQ(float_to_bf16(kInf), 0x7f80);
  EXPECT_TRUE(std::isnan(bf16_to_float(float_to_bf16(kNan))));
  EXPECT_TRUE(std::isnan(bf16_to_float(float_to_bf16(std::bit_cast<float>(0x7f800001u)))));
  EXPECT_TRUE(std::isnan(bf16_to_float(float_to_bf16(std::bit_cast<float>(0xffffffffu)))));
}

TEST(E4m3, RoundsToNearestEvenAndSaturates) {
  check_rounding<std::uint8_t>(0x7e, 0x80, false, e4m3_to_float, float_to_e4m3);
  check_neighbours_of_midpoints<std::uint8_t>(0x7e, e4m3_to_float, float_to_e4m3);
  EXPECT_EQ(e4m3_to_float(0x7e), 448.0f);
  EXPECT_EQ(e4m3_to_float(0x38), 1.0f);
  EXPECT_EQ(e4m3_to_float(0x01), 0x1p-9f);
  EXPECT_EQ(float_to_e4m3(500.0f), 0x7e);
  EXPECT_EQ(float_to_e4m3(kInf), 0x7e);
  EXPECT_EQ(float_to_e4m3(-kInf), 0xfe);
  EXPECT_EQ(float_to_e4m3(kNan), 0x7f);
  EXPECT_EQ(float_to_e4m3(-kNan), 0x7f);
  EXPECT_TRUE(std::isnan(e4m3_to_float(0x7f)));
  EXPECT_TRUE(std::isnan(e4m3_to_float(0xff)));
}

TEST(E4b15, RoundsHalvesAwayFromZeroAndSaturates) {
  check_rounding<std::uint8_t>(0x7f, 0x80, true, e4b15_to_float, float_to_e4b15);
  EXPECT_EQ(e4b15_to_float(0x7f), 1.875f);
  EXPECT_EQ(e4b15_to_float(0x78), 1.0f);
  EXPECT_EQ(e4b15_to_float(0x01), 0x1p-17f);
  EXPECT_EQ(float_to_e4b15(100.0f), 0x7f);
  EXPECT_EQ(float_to_e4b15(-kInf), 0xff);
}

TEST(Tensors, ConvertUnalignedAndEveryFloatType) {
  const float values[] = {0.0f, -1.5f, 3.25f, 65504.0f, 0x1p-14f};
  for (const DType dtype : {DType::F16, DType::BF16, DType::F32, DType::F64}) {
    const float* source = values;
    std::vector<unsigned char> bytes(1 + 5 * dtype_size(dtype));
    from_float(source, 5, dtype, bytes.data() + 1);
    float back[5];
    to_float(bytes.data() + 1, dtype, 5, back);
    for (int i = 0; i < 5; ++i) {
      if (dtype == DType::BF16 && i == 3) {
        EXPECT_EQ(back[i], 65536.0f);  // 65504 has more than 8 significant bits
      } else {
        EXPECT_EQ(back[i], values[i]) << dtype_name(dtype);
      }
    }
    to_float(bytes.data(), dtype, 0, nullptr);
  }
  float out = 0;
  EXPECT_THROW(to_float(&out, DType::I32, 1, &out), Error);
  EXPECT_THROW(from_float(&out, 1, DType::U8, &out), Error);
}

TEST(DTypeNames, RoundTrip) {
  for (const DType dtype : {DType::F16, DType::BF16, DType::F32, DType::U8, DType::I32, DType::I64, DType::F64}) {
    EXPECT_EQ(dtype_from_name(dtype_name(dtype)), dtype);
  }
  EXPECT_EQ(dtype_from_name("fp16"), DType::F16);
  EXPECT_EQ(dtype_from_name("BF16"), DType::BF16);
  EXPECT_EQ(dtype_from_name("F32"), DType::F32);
  EXPECT_THROW(dtype_from_name("float8"), Error);
}

}  // namespace
}  // namespace tq4
