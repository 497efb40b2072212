// Rows of one head out of a row-major array in a flat file: the shared arithmetic of the safetensors and npy readers.
#pragma once

#include <cstdint>
#include <functional>

#include "io/dump_schema.h"

namespace tq4::io {

/// Reads `bytes` bytes at byte `offset` of the array's data.
using ReadBytes = std::function<void(std::uint64_t offset, void* out, std::size_t bytes)>;

/// Whether a head's tokens lie one after the other, so that reading every head reads every byte once.
bool heads_contiguous(const PlacedTensor& tensor);

/// Tokens [token_begin, +count) of `head` into out [count, head_dim], F64 converted to fp32. Memory beside `out` stays below 8 MiB.
void read_rows(const PlacedTensor& tensor, const ReadBytes& read, int head, std::int64_t token_begin, std::int64_t count, void* out);

/// A whole array of floats as fp32.
std::vector<float> read_all_as_float(const SourceTensor& source, const ReadBytes& read);

}  // namespace tq4::io
