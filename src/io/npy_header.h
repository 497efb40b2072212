// The header of a .npy array: magic, version, and a Python dictionary literal with exactly descr, fortran_order and shape.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "tq4/types.h"

namespace tq4::io {

struct NpyHeader {
  std::string descr;  ///< NumPy's type string, "<f2"; empty for structured types
  std::vector<std::uint64_t> shape;
  std::uint64_t data_start = 0;   ///< bytes from the array's begin to its data
  std::size_t element_bytes = 0;  ///< from descr; 0 for structured types
  std::optional<DType> dtype;     ///< element type when it is a float we read
  std::string problem;            ///< else why not, and how to mend it
};

/// Enough of a file's begin for every header NumPy writes.
inline constexpr std::size_t kNpyHeaderMax = 70000;

/// Parses the header at the start of `bytes` (the array's first kNpyHeaderMax bytes, or all it has). BadInput says what is wrong.
NpyHeader parse_npy_header(std::span<const std::uint8_t> bytes, const std::string& where);

}  // namespace tq4::io
