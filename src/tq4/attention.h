// Reference attention on the CPU in double precision: the oracle of the CUDA kernels and of the quality report. Slow and plain on purpose.
#pragma once

#include <cstdint>

namespace tq4 {

struct AttentionOptions {
  double sm_scale = 0;                  ///< 0 = 1 / sqrt(head_dim)
  bool causal = true;                   ///< query i (of q_len) sees keys up to seq_len - q_len + i
  int window = 0;                       ///< sliding window: the last `window` keys up to a query's own position; 0 = all
  double soft_cap = 0;                  ///< logits become cap * tanh(logit / cap); 0 = off
  const float* alibi_slopes = nullptr;  ///< [num_q_heads]; adds slope * (key_pos - query_pos)
  const float* sink_logits = nullptr;   ///< [num_q_heads]; a learned logit that takes part in the softmax without a value
};

/// One sequence. q [q_len, num_q_heads, D]; k, v [num_kv_heads, seq_len, D] (original or rotated space, as q is);
/// out [q_len, num_q_heads, D]; lse [q_len, num_q_heads] natural log of the sum of exp (sinks included), may be null.
/// seq_len 0 gives out = 0 and lse = -inf (or the sink's logit).
void reference_attention(const float* q, const float* k, const float* v, int q_len, std::int64_t seq_len, int num_q_heads, int num_kv_heads,
                         int head_dim, const AttentionOptions& options, double* out, double* lse);

}  // namespace tq4
