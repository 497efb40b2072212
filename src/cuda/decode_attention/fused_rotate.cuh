// The rotations inside the fused kernel: queries before the tiles, finished outputs after them, by the tensor cores, for all pairs of a round at
// once. Matrices are fp16 [D, D] in global memory, shared or one a kv head (calibration).
#pragma once

#include "cuda/decode_attention/fused_config.cuh"

namespace tq4::gpu::fused {

/// out(i, n) = sum_j matrix[i][j] * row_n[j] for 16 outputs and 8 rows, by one warp. The operands can be asked for long before they are used.
/// matrix: fp16 [D, D] row-major in global memory.

template <int D>
struct RotateTile {
  static constexpr int K = D / 32;
  uint4 lo[K], hi[K];
  std::uint32_t b[K][4];

  __device__ __forceinline__ void load_matrix(const std::uint16_t* matrix, int block, int lane) {
    const std::uint16_t* row = matrix + (block * 16 + (lane >> 2)) * D + 8 * (lane & 3);
#pragma unroll
    for (int k = 0; k < K; ++k) {
      lo[k] = __ldg(reinterpret_cast<const uint4*>(row + k * 32));
      hi[k] = __ldg(reinterpret_cast<const uint4*>(row + 8 * D + k * 32));
    }
  }
  /// row(j, b): 8 halves from column j of the row this lane stands for (4 words).
  template <class Row>
  __device__ __forceinline__ void load_rows(int lane, Row&& row) {
#pragma unroll
    for (int k = 0; k < K; ++k) row(k * 32 + 8 * (lane & 3), b[k]);
  }
  __device__ __forceinline__ void rows_to_half() {
#pragma unroll
    for (int k = 0; k < K; ++k)
#pragma unroll
      for (int i = 0; i < 4; ++i) b[k][i] = bf16x2_to_half2(b[k][i]);
  }
  /// store(i, n, value) for this lane's results.
  template <class Store>
  __device__ __forceinline__ void run(int block, int lane, Store&& store) const {
    float c[2][4] = {};
#pragma unroll
    for (int k = 0; k < K; ++k) {
      mma(c[0], lo[k].x, hi[k].x, lo[k].y, hi[k].y, b[k][0], b[k][1]);
      mma(c[1], lo[k].z, hi[k].z, lo[k].w, hi[k].w, b[k][2], b[k][3]);
    }
#pragma unroll
    for (int e = 0; e < 4; ++e) store(block * 16 + (lane >> 2) + e / 2 * 8, 2 * (lane & 3) + e % 2, c[0][e] + c[1][e]);
  }
};

/// What a thread of the kernel is, what a round's pairs are, and the rotations of their rows.
template <class C>
struct Rotations {
  using S = typename C::S;
  using Rotate = RotateTile<C::D>;
  static constexpr int D = C::D;
  static constexpr int Blocks16 = D / 16;            // blocks of 16 outputs of a rotation
  static constexpr int RowTiles = C::RoundRows / 8;  // column tiles of 8 rows of a round
  static constexpr int PairTiles = S::Rows > 8 ? S::Rows / 8 : 1;

  const Params& p;
  const int warp, lane, g, t;

  __device__ __forceinline__ Rotations(const Params& params, int thread)
      : p(params), warp(thread / 32), lane(thread % 32), g(thread % 32 >> 2), t(thread & 3) {}

  __device__ __forceinline__ int rows() const { return p.group * p.q_len; }
  /// Offset of query row r of a pair in q and out.
  __device__ __forceinline__ std::int64_t row_offset(int seq, int head, int r) const {
    const int token = r * p.group_reciprocal >> 16;
    return ((std::int64_t)(seq * p.q_len + token) * (p.num_kv_heads * p.group) + head * p.group + r - token * p.group) * D;
  }
  __device__ __forceinline__ Pair pair_at(int slot) const {
    return {pair_word(slot, 0), pair_word(slot, 1), pair_word(slot, 3), pair_word(slot, 4), pair_word(slot, 5)};
  }
  __device__ __forceinline__ int pair_word(int slot, int word) const { return (int)lds32(C::kPairTable + slot * 32 + word * 4); }

  // The rows of a round (pair slot * S::Rows + row) make RowTiles column tiles. A job is one block of 16 outputs of one column tile; with a matrix a head
  // a column tile of several pairs takes a job for each of them.

  struct Job {
    int block, tile, slot;  // slot: the pair whose rows count, -1 = all
  };
  __device__ __forceinline__ int job_count(bool per_head, int pairs) const {
    return Blocks16 * (per_head ? pairs * PairTiles : (pairs * S::Rows + 7) / 8);
  }
  __device__ __forceinline__ Job job_at(bool per_head, int i) const {
    const int n = i / Blocks16;
    if (!per_head) return {i % Blocks16, n, -1};
    return {i % Blocks16, S::Rows > 8 ? n : n * S::Rows / 8, S::Rows > 8 ? n / PairTiles : n};
  }
  __device__ __forceinline__ void load_job_matrix(Rotate& rotate, const std::uint16_t* matrix, std::int64_t head_stride,
                                                  const Job& job) const {
    rotate.load_matrix(matrix + (job.slot >= 0 ? pair_word(job.slot, 1) * head_stride : 0), job.block, lane);
  }
  /// The query row `row` of the round. Rows that do not exist repeat one that does: computed and dropped.
  __device__ __forceinline__ const std::uint16_t* query_row(int row, int pairs) const {
    const int slot = min(row / S::Rows, pairs - 1);
    return static_cast<const std::uint16_t*>(p.q) + row_offset(pair_word(slot, 0), pair_word(slot, 1), min(row % S::Rows, rows() - 1));
  }
  __device__ __forceinline__ void ask_queries(Rotate& rotate, const Job& job, int pairs) const {
    const std::uint16_t* q = query_row(job.tile * 8 + g, pairs);
    rotate.load_rows(lane, [&](int j, std::uint32_t* b) {
      const uint4 x = __ldg(reinterpret_cast<const uint4*>(q + j));
      b[0] = x.x, b[1] = x.y, b[2] = x.z, b[3] = x.w;
    });
    load_job_matrix(rotate, p.query_matrix, p.query_head_stride, job);
  }
  /// Rotates the queries of the round into shared memory.
  __device__ __forceinline__ void rotate_queries(int pairs) const {
    const bool per_head = p.query_head_stride != 0;
    const int jobs = job_count(per_head, pairs);
#pragma unroll 1
    for (int i = warp; i < jobs; i += kWarps) {
      const Job job = job_at(per_head, i);
      Rotate rotate;
      ask_queries(rotate, job, pairs);
      if (p.q_is_bf16) rotate.rows_to_half();
      rotate.run(job.block, lane, [&](int out, int n, float v) {
        const int row = job.tile * 8 + n;
        if (job.slot < 0 || row / S::Rows == job.slot)
          sts16(C::kRotated + row * C::HalfStride + out * 2, __half_as_ushort(__float2half_rn(v)));
      });
    }
  }
  /// Queries that come rotated already.
  __device__ __forceinline__ void copy_queries(int pairs) const {
#pragma unroll 1
    for (int e = warp * 32 + lane; e < pairs * S::Rows * (D / 2); e += kWarps * 32) {
      const int row = e / (D / 2), column = e % (D / 2);
      const std::uint32_t two = __ldg(reinterpret_cast<const std::uint32_t*>(query_row(row, pairs)) + column);
      sts32(C::kRotated + row * C::HalfStride + column * 4, p.q_is_bf16 ? bf16x2_to_half2(two) : two);
    }
  }
  /// Finished rows (kRotated, fp16, normalised) of the wanted pairs, rotated back, to the output.
  __device__ __forceinline__ void write_outputs(int pairs) const {
    const bool per_head = p.inverse_matrix && p.inverse_head_stride != 0;
    const int jobs = job_count(per_head, pairs);
    const auto put = [&](int row, int dim, float v) {
      const int slot = row / S::Rows, r = row % S::Rows;
      if (slot >= pairs || r >= rows() || !pair_word(slot, 2)) return;
      const int head = pair_word(slot, 1);
      const bool sees_a_token =
          pair_word(slot, 3) - p.q_len + (r * p.group_reciprocal >> 16) >= 0;  // without one the output is 0, not the centre
      if (p.v_centre && p.inverse_matrix && sees_a_token) v += __ldg(p.v_centre + head * D + dim);
      std::uint16_t* out = static_cast<std::uint16_t*>(p.out) + row_offset(pair_word(slot, 0), head, r) + dim;
      *out = p.q_is_bf16 ? __bfloat16_as_ushort(__float2bfloat16_rn(v)) : __half_as_ushort(__float2half_rn(v));
    };
#pragma unroll 1
    for (int i = warp; i < jobs; i += kWarps) {
      const Job job = job_at(per_head, i);
      if (!p.inverse_matrix) {
#pragma unroll 1
        for (int e = lane; e < 8 * 16; e += 32) {
          const int row = job.tile * 8 + e / 16, dim = job.block * 16 + e % 16;
          put(row, dim, half_bits_to_float(lds16(C::kRotated + row * C::HalfStride + dim * 2)));
        }
        continue;
      }
      Rotate rotate;
      load_job_matrix(rotate, p.inverse_matrix, p.inverse_head_stride, job);
      rotate.load_rows(lane, [&](int j, std::uint32_t* b) { lds128(C::kRotated + (job.tile * 8 + g) * C::HalfStride + j * 2, b); });
      rotate.run(job.block, lane, [&](int out, int n, float v) {
        const int row = job.tile * 8 + n;
        if (job.slot < 0 || row / S::Rows == job.slot) put(row, out, v);
      });
    }
  }
};

}  // namespace tq4::gpu::fused
