// See flat_rows.h. Where a head's tokens are contiguous one read serves; where heads interleave ([tokens, heads, head_dim]) whole tokens are
// read in pieces and the head's rows picked out.
#include "io/flat_rows.h"

#include <algorithm>
#include <cstring>
#include <vector>

namespace tq4::io {
namespace {

constexpr std::size_t kPiece = std::size_t{4} << 20;

/// Copies elements as they are, or narrows doubles.
void deliver(const std::uint8_t* from, DType stored, std::size_t elements, std::uint8_t* to) {
  if (stored == DType::F64) {
    to_float(from, stored, elements, reinterpret_cast<float*>(to));
  } else {
    std::memcpy(to, from, elements * dtype_size(stored));
  }
}

}  // namespace

bool heads_contiguous(const PlacedTensor& tensor) { return tensor.head_axis < tensor.token_axis || tensor.heads() == 1; }

void read_rows(const PlacedTensor& tensor, const ReadBytes& read, int head, std::int64_t token_begin, std::int64_t count, void* out) {
  const DType stored = *tensor.source.dtype;
  const std::uint64_t row = tensor.head_dim() * dtype_size(stored);
  const std::uint64_t out_row = tensor.head_dim() * dtype_size(delivered_dtype(stored));
  const bool contiguous = heads_contiguous(tensor);
  const std::uint64_t stride = contiguous ? row : row * tensor.heads();  // from token to token
  const std::uint64_t head_offset = static_cast<std::uint64_t>(head) * (contiguous ? row * tensor.tokens() : row);
  auto* to = static_cast<std::uint8_t*>(out);
  const auto begin = static_cast<std::uint64_t>(token_begin), end = begin + static_cast<std::uint64_t>(count);
  if (contiguous && stored != DType::F64) {
    read(head_offset + begin * row, to, static_cast<std::size_t>((end - begin) * row));
    return;
  }
  const std::uint64_t step = std::max<std::uint64_t>(1, kPiece / stride);
  std::vector<std::uint8_t> piece;
  for (std::uint64_t token = begin; token < end; token += step) {
    const std::uint64_t tokens = std::min(step, end - token);
    piece.resize(static_cast<std::size_t>((tokens - 1) * stride + row));
    read(head_offset + token * stride, piece.data(), piece.size());
    for (std::uint64_t i = 0; i < tokens; ++i, to += out_row)
      deliver(piece.data() + i * stride, stored, static_cast<std::size_t>(tensor.head_dim()), to);
  }
}

std::vector<float> read_all_as_float(const SourceTensor& source, const ReadBytes& read) {
  std::size_t elements = 1;
  for (const std::uint64_t extent : source.shape) elements *= static_cast<std::size_t>(extent);
  std::vector<std::uint8_t> raw(elements * dtype_size(*source.dtype));
  read(0, raw.data(), raw.size());
  std::vector<float> values(elements);
  to_float(raw.data(), *source.dtype, elements, values.data());
  return values;
}

}  // namespace tq4::io
