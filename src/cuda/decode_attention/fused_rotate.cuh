// The rotations inside the fused kernel: queries before the tiles, finished outputs after them, by the tensor cores, for all pairs of a round at
// once. Matrices are fp16 [D, D] in global memory, shared or one a kv head (calibration). A warp's share of a matrix is 8 of its rows: few enough
// registers to ask for them long before the rows they turn are there.
#pragma once

#include "cuda/decode_attention/fused_config.cuh"

namespace tq4::gpu::fused {

/// 8 N rows of a matrix [D, D] (fp16, row-major, global memory) as operands B: so many results of every vector that is turned.
template <int D, int N>
struct MatrixRows {
  static constexpr int K = D / 32;
  uint4 w[N][K];

  /// Of lane (g, t): rows 8 N * block + 8 n + g, columns 32 k + 8 t on.
  __device__ __forceinline__ void load(const std::uint16_t* matrix, int block, int lane) {
    const std::uint16_t* row = matrix + (block * 8 * N + (lane >> 2)) * D + 8 * (lane & 3);
#pragma unroll
    for (int n = 0; n < N; ++n)
#pragma unroll
      for (int k = 0; k < K; ++k) w[n][k] = __ldg(reinterpret_cast<const uint4*>(row + n * 8 * D + k * 32));
  }
  /// c[n][2 h + e]: result 8 N * block + 8 n + 2 t + e of vector g + 8 h of 16, rows first_row on of the fp16 rows at `base` (C::half_at). Without `all`: of
  /// the first 8.
  template <class C>
  __device__ __forceinline__ void turn(int lane, float (&c)[N][4], std::uint32_t base, int first_row, bool all) const {
    const std::uint32_t own = C::half_at(base, first_row + (lane >> 2), 8 * (lane & 3));
#pragma unroll
    for (int n = 0; n < N; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) c[n][i] = 0.f;
#pragma unroll
    for (int k = 0; k < K; ++k) {
      std::uint32_t lo[4], hi[4] = {};
      lds128(own ^ k << 6, lo);
      if (all) lds128((own ^ k << 6) + 8 * C::HalfStride, hi);
#pragma unroll
      for (int n = 0; n < N; ++n) {
        mma(c[n], lo[0], hi[0], lo[1], hi[1], w[n][k].x, w[n][k].y);
        mma(c[n], lo[2], hi[2], lo[3], hi[3], w[n][k].z, w[n][k].w);
      }
    }
  }
};

/// What a thread of the kernel is, what a round's pairs are, and the rotations of their rows.
template <class C>
struct Rotations {
  using S = typename C::S;
  static constexpr int D = C::D;
  static constexpr int ShareBlocks = (D / 8 + C::Warps - 1) / C::Warps;  // a share a warp
  static_assert(D / 8 % ShareBlocks == 0);
  static constexpr int Blocks = D / 8 / ShareBlocks;  // shares of a matrix
  using Share = MatrixRows<D, ShareBlocks>;

  const Params& p;
  int warp, lane, g, t;

  __device__ __forceinline__ explicit Rotations(const Params& params) : p(params) { identify(); }
  /// Who this thread is, read anew: what the compiler derives from it then lives no longer than the phase of the kernel that begins here.
  __device__ __forceinline__ void identify() {
    const int thread = thread_number();
    warp = thread >> 5, lane = thread & 31, g = lane >> 2, t = lane & 3;
  }

  __device__ __forceinline__ int rows() const { return p.group * p.q_len; }
  /// Offset of query row r of a pair in q and out.
  __device__ __forceinline__ std::int64_t row_offset(int seq, int head, int r) const {
    const int token = r * p.group_reciprocal >> 16;
    return ((std::int64_t)(seq * p.q_len + token) * (p.num_kv_heads * p.group) + head * p.group + r - token * p.group) * D;
  }
  __device__ __forceinline__ Pair pair_at(int slot) const {
    return {pair_word(slot, 0), pair_word(slot, 1), pair_word(slot, 3), pair_word(slot, 4), pair_word(slot, 5), pair_word(slot, 6)};
  }
  __device__ __forceinline__ int pair_word(int slot, int word) const { return (int)lds32(C::kPairTable + slot * 32 + word * 4); }

  // The rows of a round (pair slot * S::Rows + row) go 16 by 16 through a product. A run is the rows of 16 that share a matrix: pairs of a round that
  // have a kv head in common lie beside each other. A job is one share of the matrix for one run.

  struct Job {
    int block, first_row;  // of the share; of the 16 rows
    int begin, end;        // rows that count
  };
  /// Bit i: the pair in slot i begins a run.
  __device__ __forceinline__ unsigned find_runs(bool per_head, int pairs) const {
    bool begins = lane < pairs && lane * S::Rows % 16 == 0;
    if (per_head && lane > 0 && lane < pairs) begins |= pair_word(lane, 1) != pair_word(lane - 1, 1);
    return __ballot_sync(~0u, begins);
  }
  __device__ __forceinline__ static int job_count(unsigned runs) { return Blocks * __popc(runs); }
  /// The runs from that of job i on.
  __device__ __forceinline__ static unsigned runs_from(unsigned runs, int i) {
#pragma unroll 1
    for (int n = (unsigned)i / Blocks; n > 0; --n) runs &= runs - 1;
    return runs;
  }
  __device__ __forceinline__ static Job job_at(unsigned runs, int pairs, int i) {
    if (runs == 1) return {(int)((unsigned)i % Blocks), 0, 0, pairs * S::Rows};
    const unsigned from = runs_from(runs, i), after = from & (from - 1);
    const int slot = __ffs(from) - 1;
    return {(int)((unsigned)i % Blocks), slot * S::Rows / 16 * 16, slot * S::Rows, (after ? __ffs(after) - 1 : pairs) * S::Rows};
  }
  /// This warp's share of the matrix of kv head `head` (0 where they share one) for job i.
  __device__ __forceinline__ void load_share(Share& share, const std::uint16_t* matrix, std::int64_t head_stride, int i, int head) const {
    share.load(matrix + head * head_stride, (int)((unsigned)i % Blocks), lane);
  }

  __device__ __forceinline__ void load_share_of_job(Share& share, const std::uint16_t* matrix, std::int64_t head_stride, unsigned runs,
                                                    int i) const {
    load_share(share, matrix, head_stride, i, head_stride != 0 ? pair_word(__ffs(runs_from(runs, i)) - 1, 1) : 0);
  }

  /// For the warp's first job, before the table of pairs is there: of the head of the round's first pair, which may not be the job's.
  __device__ __forceinline__ void load_first_share(Share& share, const std::uint16_t* matrix, std::int64_t head_stride, int head) const {
    load_share(share, matrix, head_stride, warp, head);
  }
  /// Again where it was not: small matrices have fewer shares than there are warps.
  __device__ __forceinline__ void correct_first_share(Share& share, const std::uint16_t* matrix, std::int64_t head_stride,
                                                      unsigned runs) const {
    if (Blocks < C::Warps && head_stride != 0 && warp >= Blocks && warp < job_count(runs))
      load_share_of_job(share, matrix, head_stride, runs, warp);
  }

  /// Whether a warp's jobs all take the same share.
  __device__ __forceinline__ static bool one_share(std::int64_t head_stride) { return Blocks == C::Warps && head_stride == 0; }
  static constexpr bool TwoShares = S::Packed && ShareBlocks == 1;  // there are registers for two of them before the tiles
  /// For the warp's second job with the queries, if it has one and its share is another.
  __device__ __forceinline__ void load_second_share(Share& second, int pairs) const {
    if (!TwoShares || one_share(p.query_head_stride)) return;
    const unsigned runs = find_runs(p.query_head_stride != 0, pairs);
    if (warp + C::Warps < job_count(runs)) load_share_of_job(second, p.query_matrix, p.query_head_stride, runs, warp + C::Warps);
  }

  /// The queries of the round as fp16 to the rows at `to`, 16 bytes a thread. Rows that there are not become 0.
  __device__ __forceinline__ void copy_queries(int pairs, std::uint32_t to) const {
    constexpr int kWords = C::RoundRows * D / 8, kThreads = C::Warps * 32;
#pragma unroll
    for (int i = 0; i < (kWords + kThreads - 1) / kThreads; ++i) copy_query(pairs, to, i * kThreads + warp * 32 + lane);
  }
  __device__ __forceinline__ void copy_query(int pairs, std::uint32_t to, unsigned e) const {
    const unsigned row = e / (D / 8), column = e % (D / 8), slot = row / S::Rows;
    const int r = row % S::Rows;
    if (row >= C::RoundRows) return;
    uint4 x = make_uint4(0, 0, 0, 0);
    if ((int)slot < pairs && r < rows())
      x = __ldg(
          reinterpret_cast<const uint4*>(static_cast<const std::uint16_t*>(p.q) + row_offset(pair_word(slot, 0), pair_word(slot, 1), r)) +
          column);
    if (p.q_is_bf16) x = make_uint4(bf16x2_to_half2(x.x), bf16x2_to_half2(x.y), bf16x2_to_half2(x.z), bf16x2_to_half2(x.w));
    sts128_words<0>(C::half_at(to, row, column * 8), (int)x.x, (int)x.y, (int)x.z, (int)x.w);
  }
  /// Rotates them: from rows at `from` to C::kRotated. `share`, `second`: for the warp's first two jobs.
  __device__ __forceinline__ void rotate_queries(int pairs, std::uint32_t from, Share& share, Share& second) const {
    const unsigned runs = find_runs(p.query_head_stride != 0, pairs);
    const int jobs = job_count(runs);
    correct_first_share(share, p.query_matrix, p.query_head_stride, runs);
#pragma unroll 1
    for (int i = warp; i < jobs; i += C::Warps) {
      const Job job = job_at(runs, pairs, i);
      float c[ShareBlocks][4];
      share.template turn<C>(lane, c, from, job.first_row, job.end > job.first_row + 8);
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int row = job.first_row + g + 8 * h;
        if (row >= job.begin && row < job.end) {
#pragma unroll
          for (int n = 0; n < ShareBlocks; ++n)
            sts32(C::half_at(C::kRotated, row, (job.block * ShareBlocks + n) * 8 + 2 * t), pack_half2(c[n][2 * h], c[n][2 * h + 1]));
        }
      }
      if (one_share(p.query_head_stride)) continue;
      if constexpr (TwoShares) share = second;
      const int next = i + (TwoShares ? 2 : 1) * C::Warps;
      if (next < jobs) load_share_of_job(TwoShares ? second : share, p.query_matrix, p.query_head_stride, runs, next);
    }
  }

  /// Two dims of row `row` of the round to the output, if its pair ends in this block.
  __device__ __forceinline__ void put(int pairs, int row, int dim, float x, float y) const {
    const int slot = (unsigned)row / S::Rows, r = (unsigned)row % S::Rows;
    if (slot >= pairs || r >= rows()) return;
    const int head = pair_word(slot, 1);
    const bool sees_a_token =
        pair_word(slot, 3) - p.q_len + (r * p.group_reciprocal >> 16) >= 0;  // without one the output is 0, not the centre
    if (p.v_centre && p.inverse_matrix && sees_a_token) {
      const float2 centre = __ldg(reinterpret_cast<const float2*>(p.v_centre + head * D + dim));
      x += centre.x, y += centre.y;
    }
    const std::int64_t at = row_offset(pair_word(slot, 0), head, r) + dim;
    static_cast<std::uint32_t*>(p.out)[at / 2] = p.q_is_bf16 ? bf16x2_bits(x, y) : pack_half2(x, y);
  }
  /// Finished rows (kRotated, fp16, normalised) of the pairs that end in this block, rotated back, to the output. `share`: for the warp's first job.
  __device__ __forceinline__ void write_outputs(int pairs, Share& share) const {
    if (!pair_word(pairs - 1, 2)) --pairs;  // the last one may go on in the next block
    if (!p.inverse_matrix) {
#pragma unroll 1
      for (int e = warp * 32 + lane; e < pairs * S::Rows * (D / 2); e += C::Warps * 32) {
        const unsigned row = (unsigned)e / (D / 2), dim = (unsigned)e % (D / 2) * 2;
        const std::uint32_t two = lds32(C::half_at(C::kRotated, row, dim));
        put(pairs, row, dim, half_bits_to_float(two & 0xffff), half_bits_to_float(two >> 16));
      }
      return;
    }
    const unsigned runs = find_runs(p.inverse_head_stride != 0, pairs);
    const int jobs = job_count(runs);
    correct_first_share(share, p.inverse_matrix, p.inverse_head_stride, runs);
#pragma unroll 1
    for (int i = warp; i < jobs;) {
      const Job job = job_at(runs, pairs, i);
      const bool all = job.end > job.first_row + 8;
      float c[ShareBlocks][4];
      share.template turn<C>(lane, c, C::kRotated, job.first_row, all);
#pragma unroll 1
      for (int h = 0; h < 2 && (h == 0 || all); ++h) {
        const int row = job.first_row + g + 8 * h;
        if (row >= job.begin && row < job.end) {
#pragma unroll
          for (int n = 0; n < ShareBlocks; ++n)
            put(pairs, row, (job.block * ShareBlocks + n) * 8 + 2 * t, h ? c[n][2] : c[n][0], h ? c[n][3] : c[n][1]);
        }
      }
      i += C::Warps;
      if (i < jobs && !one_share(p.inverse_head_stride)) load_share_of_job(share, p.inverse_matrix, p.inverse_head_stride, runs, i);
    }
  }
};

}  // namespace tq4::gpu::fused
