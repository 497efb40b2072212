// Coding with feedback (scalar_feedback.cpp says what it is), 16 rows at a time with a row a lane: the recursion runs along the coordinates
// and never across lanes, so every lane does what the scalar reference does, operation for operation.
#if defined(TQ4_CPU_SIMD_FEEDBACK_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef TQ4_CPU_SIMD_FEEDBACK_INL_H_
#undef TQ4_CPU_SIMD_FEEDBACK_INL_H_
#else
#define TQ4_CPU_SIMD_FEEDBACK_INL_H_
#endif

#include <algorithm>
#include <cmath>
#include <limits>

#include "cpu/scalar.h"
#include "cpu/simd_decode-inl.h"
#include "cpu/simd_transform-inl.h"

HWY_BEFORE_NAMESPACE();
namespace tq4::cpu::HWY_NAMESPACE {

/// dot16 of 16 rows held coordinate-major: a[16 * j + lane].
inline F32x16 LaneDot(const float* a, const float* b, int dim) {
  F32x16 p[16];
  for (F32x16& partial : p) partial = Zero16();
  for (int j = 0; j < dim; ++j) p[j & 15] = Fma(Load16(a + 16 * j), Load16(b + 16 * j), p[j & 15]);
  for (int half = 8; half > 0; half /= 2) {
    for (int l = 0; l < half; ++l) p[l] = Add(p[l], p[l + half]);
  }
  return p[0];
}

/// Working memory of one batch: [dim, 16] arrays.
struct FeedbackBatch {
  alignas(64) float target[16 * kMaxDim];
  alignas(64) float reach[16 * kMaxDim];
  alignas(64) float rows[16 * kMaxDim];  ///< N y, row-major
  alignas(64) std::uint8_t codes[16 * kMaxDim];
  alignas(64) std::uint8_t best[16 * kMaxDim];
};

/// The nearest point of each lane's pair; its coordinates come back in c0 and c1.
HWY_INLINE I32x16 NearestPairs(const float* pairs, int count, F32x16 z0, F32x16 z1) {
  F32x16 best = Set16(std::numeric_limits<float>::infinity());
  I32x16 best_code = SetI16(0);
  for (int code = 0; code < count; ++code) {
    const F32x16 dx = Sub(z0, Set16(pairs[2 * code])), dy = Sub(z1, Set16(pairs[2 * code + 1]));
    const F32x16 distance = Fma(dx, dx, Mul(dy, dy));
    const Mask16 nearer = Less(distance, best);
    best = Select(nearer, distance, best);
    best_code = SelectI(nearer, SetI16(code), best_code);
  }
  return best_code;
}

HWY_INLINE I32x16 CountBoundaries(const float* boundaries, int count, F32x16 z) {
  I32x16 code = SetI16(0);
  for (int i = 0; i < count; ++i) code = MaskedAdd(GreaterEqual(z, Set16(boundaries[i])), code, SetI16(1));
  return code;
}

inline void CodeRound(const CodeTables& t, const FeedbackTables& f, F32x16 inverse_scale, FeedbackBatch& b) {
  const int dim = t.dim, mask = (1 << t.bits) - 1;
  std::memset(b.reach, 0, sizeof(float) * 16 * static_cast<std::size_t>(dim));
  const F32x16 minus = Set16(-1.0f);
  for (int i = 0; i < dim; i += 2) {
    float* const reach = b.reach + 16 * i;
    const F32x16 z0 = Fma(Load16(b.target + 16 * i), inverse_scale, Mul(minus, Load16(reach)));
    const F32x16 z1 = Fma(Load16(b.target + 16 * i + 16), inverse_scale, Mul(minus, Load16(reach + 16)));
    F32x16 c0, c1;
    if (t.pairs != nullptr) {
      const I32x16 pair = NearestPairs(t.pairs, 1 << (2 * t.bits), z0, z1);
      const I32x16 twice = AddI(pair, pair);
      c0 = Gather(t.pairs, twice);
      c1 = Gather(t.pairs + 1, twice);
      alignas(64) std::uint8_t bytes[16];
      StoreBytes16(pair, bytes);
      for (int l = 0; l < 16; ++l) {
        b.codes[16 * i + l] = static_cast<std::uint8_t>(bytes[l] & mask);
        b.codes[16 * i + 16 + l] = static_cast<std::uint8_t>(bytes[l] >> t.bits);
      }
    } else {
      const I32x16 first = CountBoundaries(t.boundaries, mask, z0), second = CountBoundaries(t.boundaries, mask, z1);
      c0 = Gather(t.centroids, first);
      c1 = Gather(t.centroids, second);
      StoreBytes16(first, b.codes + 16 * i);
      StoreBytes16(second, b.codes + 16 * i + 16);
    }
    Store16(Add(Load16(reach), c0), reach);
    Store16(Add(Load16(reach + 16), c1), reach + 16);
    const float* column0 = f.matrix_t + static_cast<std::ptrdiff_t>(i) * dim;
    const float* column1 = column0 + dim;
    for (int j = i + 2; j < dim; ++j) {
      float* const at = b.reach + 16 * j;
      Store16(Fma(Set16(column1[j]), c1, Fma(Set16(column0[j]), c0, Load16(at))), at);
    }
  }
}

inline void EncodeFeedbackBatch(const CodeTables& t, const FeedbackTables& f, const float* y, int rows, const EncodedOut& out,
                                FeedbackBatch& b) {
  const int dim = t.dim;
  alignas(64) float norms[16] = {};
  Product(f.matrix_t, dim, y, rows, b.rows);
  for (int r = 0; r < 16; ++r) {
    if (r >= rows) {
      for (int j = 0; j < dim; ++j) b.target[16 * j + r] = 0.0f;
      continue;
    }
    const float* row = y + r * dim;
    norms[r] = std::sqrt(Dot(row, row, dim));
    for (int j = 0; j < dim; ++j) b.target[16 * j + r] = row[j] + b.rows[r * dim + j];
  }
  const F32x16 zero = Zero16(), one = Set16(1.0f);
  F32x16 scale = Mul(Load16(norms), Set16(f.gain)), best_scale = scale, best_fit = Set16(-1.0f);
  const F32x16 squares = t.scale_rule == ScaleRule::Unbiased ? LaneDot(b.target, b.target, dim) : zero;
  for (int round = 0; round < kFeedbackRounds; ++round) {
    CodeRound(t, f, Div(one, scale), b);
    const F32x16 match = LaneDot(b.target, b.reach, dim), power = LaneDot(b.reach, b.reach, dim);
    const F32x16 next = Div(match, power), fit = Mul(match, next);
    const unsigned usable = MaskBits(Less(zero, match)) & MaskBits(Less(zero, power)) & MaskBits(Less(zero, next));
    const unsigned better = usable & MaskBits(Less(best_fit, fit));
    alignas(64) float now[16], old[16], fits[16], best_fits[16], candidate[16];
    Store16(next, now);
    Store16(scale, old);
    Store16(fit, fits);
    Store16(best_fit, best_fits);
    Store16(t.scale_rule == ScaleRule::Unbiased ? Div(squares, match) : t.scale_rule == ScaleRule::Norm ? scale : next, candidate);
    alignas(64) float kept[16];
    Store16(best_scale, kept);
    for (int r = 0; r < 16; ++r) {
      const bool take = (better >> r & 1) != 0;
      if (take || round == 0) {
        for (int j = 0; j < dim; ++j) b.best[r * dim + j] = b.codes[16 * j + r];
      }
      if (take) {
        kept[r] = candidate[r];
        best_fits[r] = fits[r];
      }
      if ((usable >> r & 1) != 0) old[r] = now[r];
    }
    best_scale = Load16(kept);
    best_fit = Load16(best_fits);
    scale = Load16(old);
  }
  alignas(64) float scales[16];
  Store16(best_scale, scales);
  for (int r = 0; r < rows; ++r) {
    const EncodedOut to = planes_at(out, t, r);
    if (norms[r] == 0.0f || !std::isfinite(norms[r])) {
      scalar_encode(t, y + r * dim, 1, to);
      continue;
    }
    *to.scale = round_scale(scales[r], t.scale_dtype);
    pack_row(t, b.best + r * dim, to.codes);
  }
}

inline void EncodeFeedback(const CodeTables& t, const FeedbackTables& f, const float* y, std::int64_t n, const EncodedOut& out) {
  static thread_local FeedbackBatch batch;
  for (std::int64_t r = 0; r < n; r += 16) {
    EncodeFeedbackBatch(t, f, y + r * t.dim, static_cast<int>(std::min<std::int64_t>(16, n - r)), planes_at(out, t, r), batch);
  }
}

}  // namespace tq4::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
