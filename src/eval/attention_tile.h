// The two inner loops of the attention metrics, compiled for each SIMD target: a small fp32 matrix product against a packed operand, and
// the statistics of one row of logits. Everything about masks, heads and codecs is in metrics.cpp.
#pragma once

#include <cstdint>
#include <vector>

namespace tq4::eval {

constexpr int kPanel = 32;     ///< columns of a panel
constexpr int kTileRows = 48;  ///< queries a tile
constexpr int kBlock = 256;    ///< fp32 sums are at most this long before they are added up in double

/// A [rows, cols] fp32 matrix cut into panels of 32 columns: panel p is [rows][32], zero beyond cols.
struct PackedMatrix {
  std::int64_t rows = 0, cols = 0;
  std::vector<float> data;
  std::int64_t panels() const { return (cols + kPanel - 1) / kPanel; }
  const float* panel(std::int64_t p) const { return data.data() + p * rows * kPanel; }
};
PackedMatrix pack(const float* matrix, std::int64_t rows, std::int64_t cols);  ///< matrix [rows, cols]
PackedMatrix pack_transposed(const float* matrix, std::int64_t rows,
                             std::int64_t cols);  ///< packs the [cols, rows] transpose of matrix [rows, cols]

/// c[r * c_stride + j] = sum over i < depth of a[r * a_stride + i] * panel[i * 32 + j], for r < rows, j < 32. Overwrites c.
void multiply_panel(const float* a, std::int64_t a_stride, int rows, const float* panel, std::int64_t depth, float* c,
                    std::int64_t c_stride);

struct TopKeys {
  int count = 0;
  float value[8];
  std::int32_t index[8];
};

/// max, and p[j] = exp(l[j] - max); sum of p in double; the eight largest logits, descending, ties to the earlier key.
struct RowSoftmax {
  float max = 0;
  double sum = 0;
  double lse() const;  ///< log of the sum of exp(l)
  TopKeys top;
};
/// l, p: [n], n >= 1; p may be l.
RowSoftmax softmax_row(const float* l, std::int64_t n, float* p);

/// Sums over a row of exact logits l (weights p of the exact softmax, not normalised) and approximate logits m.
struct RowDifference {
  double error = 0;     ///< sum (m - l)^2
  double shift = 0;     ///< sum (m - l)
  double weighted = 0;  ///< sum p (m - l)
  float max = 0;        ///< max |m - l|
};
RowDifference compare_rows(const float* l, const float* p, const float* m, std::int64_t n);
/// sum over j of (l[j] - mean)^2
double row_variance_sum(const float* l, std::int64_t n);

/// The functions above for one instruction set.
struct TileKernels {
  void (*multiply_panel)(const float*, std::int64_t, int, const float*, std::int64_t, float*, std::int64_t);
  RowSoftmax (*softmax_row)(const float*, std::int64_t, float*);
  RowDifference (*compare_rows)(const float*, const float*, const float*, std::int64_t);
  double (*row_variance_sum)(const float*, std::int64_t);
};
/// What this CPU can run, fastest first; the last is the compiler's baseline.
std::vector<const TileKernels*> supported_tile_kernels();

}  // namespace tq4::eval
