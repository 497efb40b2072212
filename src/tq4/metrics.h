// Quality metrics: what a codec does to vectors, to attention logits, to the softmax and to the attention output. Plain functions on
// float arrays, so that the report, the calibration and the tests measure alike. Products run in fp32 (SIMD) over short blocks, every sum
// that is longer than a block in double.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <vector>

namespace tq4 {

/// Sums over vectors x and their reconstruction y.
struct VectorError {
  std::int64_t vectors = 0;
  std::int64_t nonzero = 0;  ///< vectors with |x| > 0 and |y| > 0: what the cosine averages over
  double energy = 0;         ///< sum of |x|^2
  double error = 0;          ///< sum of |x - y|^2
  double cosine_sum = 0;     ///< sum over nonzero vectors of <x, y> / (|x| |y|)

  void add(const VectorError& other);
  double relative_mse() const;  ///< error / energy; 0 where both are 0, +inf where only the energy is
  double cosine() const;        ///< mean cosine; 1 where no vector is nonzero
};
/// x, y: [n, dim].
VectorError vector_error(const float* x, const float* y, std::int64_t n, int dim);

/// Which tokens of one side a query sees exactly (kept in fp16 beside the compressed ones). For the query at position p, token j is exact
/// when j < sinks, or j > p - window, or j >= block * floor((p + 1) / block): KIVI compresses keys `block` tokens at a time and holds the rest.
struct ExactTokens {
  int sinks = 0;
  int window = 0;
  int block = 0;
  /// First exact token at or after `sinks` for a query at `position`; position + 1 or more = none.
  std::int64_t exact_from(std::int64_t position) const;
  bool any() const { return sinks > 0 || window > 0 || block > 0; }
  bool operator==(const ExactTokens&) const = default;
};

/// One kv head and the query heads that share it.
struct AttentionProblem {
  const float* q = nullptr;                   ///< [q_heads, q_tokens, dim]
  const float* k = nullptr;                   ///< [tokens, dim]
  const float* v = nullptr;                   ///< [tokens, dim]
  const std::int64_t* q_positions = nullptr;  ///< [q_tokens] ascending positions among the keys; null = q_start + i
  std::int64_t q_start = 0;
  std::int64_t q_tokens = 0;
  std::int64_t tokens = 0;
  int q_heads = 1;
  int dim = 0;
  double sm_scale = 0;     ///< 0 = 1 / sqrt(dim)
  bool causal = true;      ///< a query at position p sees keys 0..p; else all
  int sliding_window = 0;  ///< the last `sliding_window` keys up to p; 0 = all. Ignored where not causal
};

/// A reconstruction to compare with the exact K and V of the problem. A null k or v means that side is exact.
struct Reconstruction {
  const float* k = nullptr;  ///< [tokens, dim]
  const float* v = nullptr;  ///< [tokens, dim]
  ExactTokens exact_k, exact_v;
};

/// Errors of attention, summed over queries. Logits are after sm_scale, in nats.
struct AttentionError {
  std::int64_t queries = 0;
  std::int64_t logits = 0;         ///< query-key pairs that are visible
  double logit_error = 0;          ///< sum of (l' - l)^2
  double logit_error_centred = 0;  ///< the same less each query's mean error: what the softmax can see
  double logit_energy = 0;         ///< sum of (l - mean of the query's l)^2
  double logit_max = 0;            ///< max |l' - l|
  std::vector<float> kl;           ///< [queries] KL(softmax(l) || softmax(l')), nats
  std::int64_t same_top1 = 0;      ///< queries whose largest logit stays at the same key
  double top8 = 0;                 ///< sum over queries of |top-8 keys of l and of l'| / min(8, visible)
  VectorError output;              ///< attention output

  void add(const AttentionError& other);
  double logit_rmse() const;
  double logit_rmse_centred() const;
  double logit_relative_mse() const;  ///< centred error / energy
  double kl_mean() const;
  double kl_max() const;
  double kl_quantile(double p) const;  ///< nearest rank: the smallest value that at least p of the queries do not exceed
  double top1_share() const;
  double top8_share() const;
};

/// Measures every reconstruction against the exact problem; the exact part is computed once. Results do not depend on `threads`
/// (0 = all cores). `progress` is called from time to time, from one thread at a time, with the share done (0..1); returning false stops
/// with Error Interrupted. Memory: packed copies of every K and V (padded to 32 columns) plus three tiles of logits a thread (under 5 MiB
/// up to 8,192 tokens, then 150 bytes a token).
std::vector<AttentionError> attention_errors(const AttentionProblem& problem, const std::vector<Reconstruction>& reconstructions,
                                             int threads = 1, const std::function<bool(double)>& progress = {});

/// The least value x such that at least p (0..1) of `values` are <= x; NaN for an empty list.
double quantile(std::vector<float> values, double p);

}  // namespace tq4
