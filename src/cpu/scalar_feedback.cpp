// Coding with feedback: the scalar reference. A calibrated transform makes the coordinates of y equally large and uncorrelated, and an error
// e = y - scale c costs |(I + N) e|^2, N being the strictly lower triangular feedback matrix (eval/calibrate_tables.cpp derives it). Greedy
// minimisation is predictive coding: in t = (I + N) y, a pair of coordinates is coded as what remains of t after the earlier pairs' share,
// so that later codes make good what earlier ones got wrong. The bytes are those of any Mse codec and decoding is the plain table look-up.
// Several rounds refine the scale: each codes with the scale that the last one's codes fit best; the best round is kept.
#include <algorithm>
#include <cmath>

#include "cpu/scalar.h"

namespace tq4::cpu {
namespace {

/// One round: codes and centroids of t / scale; reach = (I + N) c.
void code_with_feedback(const CodeTables& t, const FeedbackTables& f, const float* target, float inverse_scale, std::uint8_t* codes,
                        float* reach) {
  const int dim = t.dim, mask = (1 << t.bits) - 1;
  std::fill(reach, reach + dim, 0.0f);
  for (int i = 0; i < dim; i += 2) {
    const float z0 = std::fma(target[i], inverse_scale, -reach[i]), z1 = std::fma(target[i + 1], inverse_scale, -reach[i + 1]);
    float c0, c1;
    if (t.pairs != nullptr) {
      const int pair = nearest_pair(t, z0, z1);
      codes[i] = static_cast<std::uint8_t>(pair & mask);
      codes[i + 1] = static_cast<std::uint8_t>(pair >> t.bits);
      c0 = t.pairs[2 * pair];
      c1 = t.pairs[2 * pair + 1];
    } else {
      codes[i] = code_of(z0, t.boundaries, mask);
      codes[i + 1] = code_of(z1, t.boundaries, mask);
      c0 = t.centroids[codes[i]];
      c1 = t.centroids[codes[i + 1]];
    }
    reach[i] += c0;
    reach[i + 1] += c1;
    for (int j = i + 2; j < dim; ++j) {
      const float* row = f.matrix + static_cast<std::ptrdiff_t>(j) * dim;
      reach[j] = std::fma(row[i + 1], c1, std::fma(row[i], c0, reach[j]));
    }
  }
}

}  // namespace

void scalar_encode_feedback(const CodeTables& t, const FeedbackTables& f, const float* y, std::int64_t n, const EncodedOut& out) {
  const int dim = t.dim;
  float target[kMaxDim], reach[kMaxDim];
  std::uint8_t codes[kMaxDim], best_codes[kMaxDim];
  for (std::int64_t r = 0; r < n; ++r, y += dim) {
    const EncodedOut row = planes_at(out, t, r);
    const float norm = std::sqrt(dot16(y, y, dim));
    if (norm == 0.0f || !std::isfinite(norm)) {
      scalar_encode(t, y, 1, row);
      continue;
    }
    for (int i = 0; i < dim; ++i) {
      float acc = 0.0f;
      for (int j = 0; j < dim; ++j) acc = std::fma(f.matrix[static_cast<std::ptrdiff_t>(i) * dim + j], y[j], acc);
      target[i] = y[i] + acc;
    }
    float scale = norm * f.gain, best_scale = scale, best_fit = -1.0f;
    for (int round = 0; round < kFeedbackRounds; ++round) {
      code_with_feedback(t, f, target, 1.0f / scale, codes, reach);
      const float match = dot16(target, reach, dim), power = dot16(reach, reach, dim);
      const float next = match / power, fit = match * next;  // |t|^2 - fit is the squared error at the best scale
      if (!(match > 0.0f && power > 0.0f && next > 0.0f)) {  // codes that point away from t: only when everything rounds to zero
        if (round == 0) std::copy(codes, codes + dim, best_codes);
        continue;
      }
      if (fit > best_fit) {
        best_fit = fit;
        best_scale = t.scale_rule == ScaleRule::Unbiased ? dot16(target, target, dim) / match
                     : t.scale_rule == ScaleRule::Norm   ? scale
                                                         : next;
        std::copy(codes, codes + dim, best_codes);
      }
      scale = next;
    }
    *row.scale = round_scale(best_scale, t.scale_dtype);
    pack_row(t, best_codes, row.codes);
  }
}

}  // namespace tq4::cpu
