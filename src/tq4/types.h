// Element types of tensors and the 16- and 8-bit float conversions every backend must agree on bit for bit.
// The conversions are the scalar reference: SIMD and CUDA code is tested against them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

namespace tq4 {

/// Element type of a tensor in memory or in a file.
enum class DType : std::uint8_t { F16, BF16, F32, U8, I32, I64, F64 };

std::size_t dtype_size(DType dtype);           ///< bytes of one element
std::string_view dtype_name(DType dtype);      ///< "float16", "bfloat16", ...
DType dtype_from_name(std::string_view name);  ///< inverse of dtype_name, also "fp16", "bf16", "F16"; throws Usage

/// Which half of the cache: keys or values.
enum class Side : std::uint8_t { K, V };

/// IEEE binary16. Round to nearest even; overflow gives infinity; NaN stays NaN.
float half_to_float(std::uint16_t bits) noexcept;
std::uint16_t float_to_half(float value) noexcept;

/// bfloat16. Round to nearest even; NaN stays NaN.
float bf16_to_float(std::uint16_t bits) noexcept;
std::uint16_t float_to_bf16(float value) noexcept;

/// FP8 E4M3 (OCP "e4m3fn": no infinity, max 448). Round to nearest even, saturating; NaN -> 0x7f.
float e4m3_to_float(std::uint8_t bits) noexcept;
std::uint8_t float_to_e4m3(float value) noexcept;

/// FP8 E4B15 (Triton's fp8e4b15: exponent bias 15, no infinity or NaN, max 1.875). What vLLM stores before sm_89.
/// As Triton: to binary16 first, saturating, then halves away from zero.
float e4b15_to_float(std::uint8_t bits) noexcept;
std::uint8_t float_to_e4b15(float value) noexcept;

/// Convert `count` elements of `dtype` (F16, BF16, F32, F64) to fp32, and back.
void to_float(const void* src, DType dtype, std::size_t count, float* dst);
void from_float(const float* src, std::size_t count, DType dtype, void* dst);

}  // namespace tq4
