// Factories of the baseline families, each in its own file, and the few pieces they share. baselines_registry.cpp knows all names.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "tq4/compressor.h"

namespace tq4::eval {

/// value rounded to binary16, clamped to its range.
float to_half(float value);

/// Uniform levels between min and max, scale and min stored in fp16: what most integer formats do. `stride` is the distance between the
/// `count` values of the group.
void round_uniform(const float* x, std::int64_t count, std::int64_t stride, int bits, float* out);

/// Orthonormal Hadamard butterflies on consecutive blocks of `block` (a power of two) of a row of `dim` values; dim % block == 0.
void hadamard_blocks(float* row, int dim, int block);
/// The largest power of two that divides dim.
int power_of_two_divisor(int dim);

std::unique_ptr<Compressor> make_int_per_token(int bits);  ///< 8: symmetric; else scale and zero
std::unique_ptr<Compressor> make_int_groups(int bits, int group, bool rotated);
std::unique_ptr<Compressor> make_llama_block(int bits, bool rotated);  ///< 4: q4_0, 8: q8_0
std::unique_ptr<Compressor> make_kivi(int bits, int group, int residual);
std::unique_ptr<Compressor> make_kvquant(int bits, bool outliers);
std::unique_ptr<Compressor> make_fp4(bool nvidia);  ///< NVFP4 or MXFP4

}  // namespace tq4::eval
