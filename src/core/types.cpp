// Element types and the scalar 16- and 8-bit float conversions. They are written with integer operations on the bits so that every
// compiler and CPU gives the same result; SIMD and CUDA conversions are tested against them, value by value.
#include "tq4/types.h"

#include <bit>
#include <cctype>
#include <cstring>
#include <string>

#include "tq4/error.h"

namespace tq4 {
namespace {

constexpr std::uint32_t kSignMask = 0x80000000u;
constexpr std::uint32_t kFloatInf = 0x7f800000u;

/// value >> shift, rounded to nearest, ties to even. shift 1..31.
constexpr std::uint32_t shift_round_even(std::uint32_t value, int shift) {
  const std::uint32_t half = 1u << (shift - 1);
  const std::uint32_t odd = (value >> shift) & 1u;
  return (value + half - 1u + odd) >> shift;
}

}  // namespace

std::size_t dtype_size(DType dtype) {
  switch (dtype) {
    case DType::U8: return 1;
    case DType::F16:
    case DType::BF16: return 2;
    case DType::F32:
    case DType::I32: return 4;
    case DType::I64:
    case DType::F64: return 8;
  }
  throw Error(ErrorCode::Usage, "unknown element type");
}

std::string_view dtype_name(DType dtype) {
  switch (dtype) {
    case DType::F16: return "float16";
    case DType::BF16: return "bfloat16";
    case DType::F32: return "float32";
    case DType::U8: return "uint8";
    case DType::I32: return "int32";
    case DType::I64: return "int64";
    case DType::F64: return "float64";
  }
  throw Error(ErrorCode::Usage, "unknown element type");
}

DType dtype_from_name(std::string_view name) {
  std::string low(name);
  for (char& c : low) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  struct Entry {
    std::string_view name;
    DType dtype;
  };
  static constexpr Entry kNames[] = {
      {"float16", DType::F16}, {"fp16", DType::F16},    {"f16", DType::F16},  {"half", DType::F16},   {"bfloat16", DType::BF16},
      {"bf16", DType::BF16},   {"float32", DType::F32}, {"fp32", DType::F32}, {"f32", DType::F32},    {"float", DType::F32},
      {"float64", DType::F64}, {"fp64", DType::F64},    {"f64", DType::F64},  {"double", DType::F64}, {"uint8", DType::U8},
      {"u8", DType::U8},       {"int32", DType::I32},   {"i32", DType::I32},  {"int64", DType::I64},  {"i64", DType::I64},
  };
  for (const Entry& entry : kNames) {
    if (entry.name == low) return entry.dtype;
  }
  throw Error(ErrorCode::Usage, "unknown element type; known: float16, bfloat16, float32, float64, uint8, int32, int64", name);
}

float half_to_float(std::uint16_t bits) noexcept {
  const std::uint32_t sign = static_cast<std::uint32_t>(bits & 0x8000u) << 16;
  const std::uint32_t exponent = (bits >> 10) & 0x1fu;
  const std::uint32_t mantissa = bits & 0x3ffu;
  if (exponent == 0x1fu) return std::bit_cast<float>(sign | kFloatInf | (mantissa << 13));
  if (exponent != 0) return std::bit_cast<float>(sign | ((exponent + 112u) << 23) | (mantissa << 13));
  const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;
  return std::bit_cast<float>(sign | std::bit_cast<std::uint32_t>(magnitude));
}

std::uint16_t float_to_half(float value) noexcept {
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(value);
  const std::uint32_t sign = (bits & kSignMask) >> 16;
  const std::uint32_t magnitude = bits & ~kSignMask;
  if (magnitude > kFloatInf) return static_cast<std::uint16_t>(sign | 0x7e00u | ((magnitude >> 13) & 0x3ffu));  // NaN, quiet
  if (magnitude >= 0x47800000u) return static_cast<std::uint16_t>(sign | 0x7c00u);                              // >= 65536
  if (magnitude >= 0x38800000u) {  // normal: the carry of rounding moves into the exponent, and to infinity from 65520 on
    return static_cast<std::uint16_t>(sign | (shift_round_even(magnitude, 13) - (112u << 10)));
  }
  const int exponent = static_cast<int>(magnitude >> 23);
  if (exponent < 102) return static_cast<std::uint16_t>(sign);  // below half of the smallest subnormal
  const std::uint32_t mantissa = (magnitude & 0x7fffffu) | 0x800000u;
  return static_cast<std::uint16_t>(sign | shift_round_even(mantissa, 126 - exponent));
}

float bf16_to_float(std::uint16_t bits) noexcept { return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16); }

std::uint16_t float_to_bf16(float value) noexcept {
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(value);
  if ((bits & ~kSignMask) > kFloatInf) return static_cast<std::uint16_t>((bits >> 16) | 0x40u);
  return static_cast<std::uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

float e4m3_to_float(std::uint8_t bits) noexcept {
  const std::uint32_t sign = static_cast<std::uint32_t>(bits & 0x80u) << 24;
  const std::uint32_t exponent = (bits >> 3) & 0xfu;
  const std::uint32_t mantissa = bits & 7u;
  if ((bits & 0x7fu) == 0x7fu) return std::bit_cast<float>(sign | 0x7fc00000u);
  if (exponent != 0) return std::bit_cast<float>(sign | ((exponent + 120u) << 23) | (mantissa << 20));
  return std::bit_cast<float>(sign | std::bit_cast<std::uint32_t>(static_cast<float>(mantissa) * 0x1p-9f));
}

std::uint8_t float_to_e4m3(float value) noexcept {
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(value);
  const std::uint32_t sign = (bits & kSignMask) >> 24;
  const std::uint32_t magnitude = bits & ~kSignMask;
  if (magnitude > kFloatInf) return 0x7f;
  if (magnitude >= 0x43e00000u) return static_cast<std::uint8_t>(sign | 0x7eu);  // >= 448 saturates
  if (magnitude >= 0x3c800000u) {                                                // >= 2^-6: normal
    // Rounding may carry to 448 but never past it: magnitude < 448 = 1.75 * 2^8, the largest finite value.
    return static_cast<std::uint8_t>(sign | (shift_round_even(magnitude, 20) - (120u << 3)));
  }
  const int exponent = static_cast<int>(magnitude >> 23);
  if (exponent < 117) return static_cast<std::uint8_t>(sign);  // below 2^-10, half of the smallest subnormal
  const std::uint32_t mantissa = (magnitude & 0x7fffffu) | 0x800000u;
  return static_cast<std::uint8_t>(sign | shift_round_even(mantissa, 141 - exponent));
}

float e4b15_to_float(std::uint8_t bits) noexcept {
  // The byte is the top of a binary16 whose highest exponent bit is dropped.
  return half_to_float(static_cast<std::uint16_t>(((bits & 0x80u) << 8) | ((bits & 0x7fu) << 7)));
}

std::uint8_t float_to_e4b15(float value) noexcept {
  // Triton goes through binary16, clamps to 1.875 and rounds halves away from zero (an add before the shift).
  const std::uint16_t half = float_to_half(value);
  std::uint32_t magnitude = half & 0x7fffu;
  if (magnitude > 0x3f80u) magnitude = 0x3f80u;  // also infinity and NaN: the format has neither
  return static_cast<std::uint8_t>(((half & 0x8000u) >> 8) | ((magnitude * 2u + 0x80u) >> 8));
}

void to_float(const void* src, DType dtype, std::size_t count, float* dst) {
  const auto* bytes = static_cast<const unsigned char*>(src);
  // Elements are read through memcpy: tensors inside files need not be aligned.
  auto each = [&]<class T>(T, auto convert) {
    for (std::size_t i = 0; i < count; ++i) {
      T element;
      std::memcpy(&element, bytes + i * sizeof(T), sizeof(T));
      dst[i] = convert(element);
    }
  };
  switch (dtype) {
    case DType::F16: return each(std::uint16_t{}, half_to_float);
    case DType::BF16: return each(std::uint16_t{}, bf16_to_float);
    case DType::F32:
      if (count != 0) std::memcpy(dst, src, count * sizeof(float));
      return;
    case DType::F64: return each(double{}, [](double v) { return static_cast<float>(v); });
    default: throw Error(ErrorCode::Usage, "cannot convert " + std::string(dtype_name(dtype)) + " to float32");
  }
}

void from_float(const float* src, std::size_t count, DType dtype, void* dst) {
  auto* bytes = static_cast<unsigned char*>(dst);
  auto each = [&](auto convert) {
    for (std::size_t i = 0; i < count; ++i) {
      const auto element = convert(src[i]);
      std::memcpy(bytes + i * sizeof(element), &element, sizeof(element));
    }
  };
  switch (dtype) {
    case DType::F16: return each(float_to_half);
    case DType::BF16: return each(float_to_bf16);
    case DType::F32:
      if (count != 0) std::memcpy(dst, src, count * sizeof(float));
      return;
    case DType::F64: return each([](float v) { return static_cast<double>(v); });
    default: throw Error(ErrorCode::Usage, "cannot convert float32 to " + std::string(dtype_name(dtype)));
  }
}

}  // namespace tq4
