// SIMD kernels of the attention metrics, compiled for AVX2, AVX-512 and the compiler's baseline and chosen at run time (here and not by
// libhwy, so that Highway stays a header-only dependency). fp32 sums are cut into blocks of 256 and added up in double.
#include "eval/attention_tile.h"

#include <algorithm>
#include <cmath>
#include <limits>

#define HWY_DISABLED_TARGETS \
  (HWY_SSSE3 | HWY_SSE4 | HWY_AVX3_DL | HWY_NEON | HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128 | HWY_RVV | HWY_WASM | HWY_PPC8)
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "eval/attention_tile.cpp"
// clang-format off
#include <hwy/foreach_target.h>  // must come before highway.h
#include <hwy/highway.h>
#include <hwy/contrib/math/math-inl.h>
// clang-format on

HWY_BEFORE_NAMESPACE();
namespace tq4::eval::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using Tag = hn::CappedTag<float, 16>;
constexpr int kUnrolledRows = 6;

/// R rows against two vectors of columns: 2 R accumulators stay in registers.
template <int R>
HWY_INLINE void micro(const float* HWY_RESTRICT a, std::int64_t a_stride, const float* HWY_RESTRICT panel, std::int64_t depth, float* c,
                      std::int64_t c_stride) {
  const Tag d;
  const std::size_t lanes = hn::Lanes(d);
  for (std::size_t col = 0; col < static_cast<std::size_t>(kPanel); col += 2 * lanes) {
    auto s00 = hn::Zero(d), s01 = s00, s10 = s00, s11 = s00, s20 = s00, s21 = s00, s30 = s00, s31 = s00, s40 = s00, s41 = s00, s50 = s00,
         s51 = s00;
    const float* b = panel + col;
    for (std::int64_t i = 0; i < depth; ++i, b += kPanel) {
      const auto b0 = hn::LoadU(d, b), b1 = hn::LoadU(d, b + lanes);
      const auto row = [&](int r) { return hn::Set(d, a[r * a_stride + i]); };
      auto x = row(0);
      s00 = hn::MulAdd(x, b0, s00), s01 = hn::MulAdd(x, b1, s01);
      if constexpr (R > 1) x = row(1), s10 = hn::MulAdd(x, b0, s10), s11 = hn::MulAdd(x, b1, s11);
      if constexpr (R > 2) x = row(2), s20 = hn::MulAdd(x, b0, s20), s21 = hn::MulAdd(x, b1, s21);
      if constexpr (R > 3) x = row(3), s30 = hn::MulAdd(x, b0, s30), s31 = hn::MulAdd(x, b1, s31);
      if constexpr (R > 4) x = row(4), s40 = hn::MulAdd(x, b0, s40), s41 = hn::MulAdd(x, b1, s41);
      if constexpr (R > 5) x = row(5), s50 = hn::MulAdd(x, b0, s50), s51 = hn::MulAdd(x, b1, s51);
    }
    const auto store = [&](int r, auto v0, auto v1) {
      hn::StoreU(v0, d, c + r * c_stride + col);
      hn::StoreU(v1, d, c + r * c_stride + col + lanes);
    };
    store(0, s00, s01);
    if constexpr (R > 1) store(1, s10, s11);
    if constexpr (R > 2) store(2, s20, s21);
    if constexpr (R > 3) store(3, s30, s31);
    if constexpr (R > 4) store(4, s40, s41);
    if constexpr (R > 5) store(5, s50, s51);
  }
}

void MultiplyPanel(const float* a, std::int64_t a_stride, int rows, const float* panel, std::int64_t depth, float* c,
                   std::int64_t c_stride) {
  int r = 0;
  for (; r + kUnrolledRows <= rows; r += kUnrolledRows) micro<6>(a + r * a_stride, a_stride, panel, depth, c + r * c_stride, c_stride);
  a += r * a_stride;
  c += r * c_stride;
  switch (rows - r) {
    case 5: micro<5>(a, a_stride, panel, depth, c, c_stride); break;
    case 4: micro<4>(a, a_stride, panel, depth, c, c_stride); break;
    case 3: micro<3>(a, a_stride, panel, depth, c, c_stride); break;
    case 2: micro<2>(a, a_stride, panel, depth, c, c_stride); break;
    case 1: micro<1>(a, a_stride, panel, depth, c, c_stride); break;
    default: break;
  }
}

/// Inserts (value, index) into the descending list; equal values keep the earlier key in front.
HWY_INLINE void insert(TopKeys& top, float value, std::int32_t index) {
  int at = top.count < 8 ? top.count++ : 7;
  for (; at > 0 && top.value[at - 1] < value; --at) {
    top.value[at] = top.value[at - 1];
    top.index[at] = top.index[at - 1];
  }
  top.value[at] = value;
  top.index[at] = index;
}

RowSoftmax SoftmaxRow(const float* l, std::int64_t n, float* p) {
  const Tag d;
  const std::int64_t lanes = static_cast<std::int64_t>(hn::Lanes(d));
  RowSoftmax row;
  std::int64_t j = 0;
  for (; j < n && row.top.count < 8; ++j) insert(row.top, l[j], static_cast<std::int32_t>(j));
  for (; j + lanes <= n; j += lanes) {
    const float least = row.top.value[7];
    if (hn::AllFalse(d, hn::Gt(hn::LoadU(d, l + j), hn::Set(d, least)))) continue;
    for (std::int64_t i = j; i < j + lanes; ++i) {
      if (l[i] > row.top.value[7]) insert(row.top, l[i], static_cast<std::int32_t>(i));
    }
  }
  for (; j < n; ++j) {
    if (l[j] > row.top.value[7]) insert(row.top, l[j], static_cast<std::int32_t>(j));
  }
  row.max = row.top.value[0];
  const auto max = hn::Set(d, row.max);
  const auto least = hn::Set(d, -80.0f);  // below: no denormals in the products that follow
  for (std::int64_t begin = 0; begin < n; begin += kBlock) {
    const std::int64_t end = std::min<std::int64_t>(n, begin + kBlock);
    auto sum = hn::Zero(d);
    std::int64_t i = begin;
    for (; i + lanes <= end; i += lanes) {
      const auto x = hn::Sub(hn::LoadU(d, l + i), max);
      const auto e = hn::IfThenElseZero(hn::Gt(x, least), hn::Exp(d, x));
      hn::StoreU(e, d, p + i);
      sum = hn::Add(sum, e);
    }
    double total = hn::GetLane(hn::SumOfLanes(d, sum));
    for (; i < end; ++i) {
      const float x = l[i] - row.max;
      p[i] = x > -80.0f ? std::exp(x) : 0.0f;
      total += p[i];
    }
    row.sum += total;
  }
  return row;
}

RowDifference CompareRows(const float* HWY_RESTRICT l, const float* HWY_RESTRICT p, const float* HWY_RESTRICT m, std::int64_t n) {
  const Tag d;
  const std::int64_t lanes = static_cast<std::int64_t>(hn::Lanes(d));
  RowDifference out;
  auto largest = hn::Zero(d);
  for (std::int64_t begin = 0; begin < n; begin += kBlock) {
    const std::int64_t end = std::min<std::int64_t>(n, begin + kBlock);
    auto error = hn::Zero(d), shift = error, weighted = error;
    std::int64_t i = begin;
    for (; i + lanes <= end; i += lanes) {
      const auto x = hn::Sub(hn::LoadU(d, m + i), hn::LoadU(d, l + i));
      error = hn::MulAdd(x, x, error);
      shift = hn::Add(shift, x);
      weighted = hn::MulAdd(hn::LoadU(d, p + i), x, weighted);
      largest = hn::Max(largest, hn::Abs(x));
    }
    double e = hn::GetLane(hn::SumOfLanes(d, error)), s = hn::GetLane(hn::SumOfLanes(d, shift)),
           w = hn::GetLane(hn::SumOfLanes(d, weighted));
    for (; i < end; ++i) {
      const float x = m[i] - l[i];
      e += static_cast<double>(x) * x;
      s += x;
      w += static_cast<double>(p[i]) * x;
      out.max = std::max(out.max, std::fabs(x));
    }
    out.error += e;
    out.shift += s;
    out.weighted += w;
  }
  out.max = std::max(out.max, hn::GetLane(hn::MaxOfLanes(d, largest)));
  return out;
}

double RowVarianceSum(const float* l, std::int64_t n) {
  const Tag d;
  const std::int64_t lanes = static_cast<std::int64_t>(hn::Lanes(d));
  const auto total = [&](auto value, auto scalar) {
    double all = 0;
    for (std::int64_t begin = 0; begin < n; begin += kBlock) {
      const std::int64_t end = std::min<std::int64_t>(n, begin + kBlock);
      auto sum = hn::Zero(d);
      std::int64_t i = begin;
      for (; i + lanes <= end; i += lanes) sum = hn::Add(sum, value(hn::LoadU(d, l + i)));
      double part = hn::GetLane(hn::SumOfLanes(d, sum));
      for (; i < end; ++i) part += scalar(l[i]);
      all += part;
    }
    return all;
  };
  const float mean =
      static_cast<float>(total([](auto v) { return v; }, [](float v) { return static_cast<double>(v); }) / static_cast<double>(n));
  const auto centre = hn::Set(d, mean);
  return total(
      [&](auto v) {
        const auto x = hn::Sub(v, centre);
        return hn::Mul(x, x);
      },
      [&](float v) { return static_cast<double>(v - mean) * static_cast<double>(v - mean); });
}

const TileKernels kTable{MultiplyPanel, SoftmaxRow, CompareRows, RowVarianceSum};

}  // namespace tq4::eval::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace tq4::eval {

namespace {

const TileKernels& kernels() {
  static const TileKernels& best = *supported_tile_kernels().front();
  return best;
}

}  // namespace

std::vector<const TileKernels*> supported_tile_kernels() {
  std::vector<const TileKernels*> found;
#if HWY_TARGETS & HWY_AVX3
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("fma")) {
    found.push_back(&N_AVX3::kTable);
  }
#endif
#if HWY_TARGETS & HWY_AVX2
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2")) found.push_back(&N_AVX2::kTable);
#endif
  found.push_back(&HWY_STATIC_DISPATCH(kTable));
  return found;
}

void multiply_panel(const float* a, std::int64_t a_stride, int rows, const float* panel, std::int64_t depth, float* c,
                    std::int64_t c_stride) {
  kernels().multiply_panel(a, a_stride, rows, panel, depth, c, c_stride);
}
RowSoftmax softmax_row(const float* l, std::int64_t n, float* p) { return kernels().softmax_row(l, n, p); }
RowDifference compare_rows(const float* l, const float* p, const float* m, std::int64_t n) { return kernels().compare_rows(l, p, m, n); }
double row_variance_sum(const float* l, std::int64_t n) { return kernels().row_variance_sum(l, n); }

double RowSoftmax::lse() const { return static_cast<double>(max) + std::log(sum); }

PackedMatrix pack(const float* matrix, std::int64_t rows, std::int64_t cols) {
  PackedMatrix out{rows, cols, {}};
  out.data.assign(static_cast<std::size_t>(out.panels() * rows * kPanel), 0.0f);
  for (std::int64_t p = 0; p < out.panels(); ++p) {
    const std::int64_t width = std::min<std::int64_t>(kPanel, cols - p * kPanel);
    for (std::int64_t r = 0; r < rows; ++r) {
      std::copy_n(matrix + r * cols + p * kPanel, width, out.data.data() + (p * rows + r) * kPanel);
    }
  }
  return out;
}

PackedMatrix pack_transposed(const float* matrix, std::int64_t rows, std::int64_t cols) {
  PackedMatrix out{cols, rows, {}};
  out.data.assign(static_cast<std::size_t>(out.panels() * cols * kPanel), 0.0f);
  for (std::int64_t p = 0; p < out.panels(); ++p) {
    const std::int64_t width = std::min<std::int64_t>(kPanel, rows - p * kPanel);
    float* panel = out.data.data() + p * cols * kPanel;
    for (std::int64_t j = 0; j < width; ++j) {
      const float* row = matrix + (p * kPanel + j) * cols;
      for (std::int64_t i = 0; i < cols; ++i) panel[i * kPanel + j] = row[i];
    }
  }
  return out;
}

}  // namespace tq4::eval
#endif
