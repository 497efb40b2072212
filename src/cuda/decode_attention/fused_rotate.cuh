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
  /// Its 16 rows for this block of outputs alone, from shared memory.
  __device__ __forceinline__ void load_matrix_shared(std::uint32_t rows, int stride, int lane) {
    const std::uint32_t row = rows + (lane >> 2) * stride + 16 * (lane & 3);
#pragma unroll
    for (int k = 0; k < K; ++k) {
      std::uint32_t v[4];
      lds128(row + k * 64, v);
      lo[k] = make_uint4(v[0], v[1], v[2], v[3]);
      lds128(row + 8 * stride + k * 64, v);
      hi[k] = make_uint4(v[0], v[1], v[2], v[3]);
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
  /// c[e]: output (lane / 4) + 8 * (e / 2) of the block, of row 2 * (lane % 4) + e % 2.
  __device__ __forceinline__ void run(float (&c)[4]) const {
    float odd[4] = {};
#pragma unroll
    for (int e = 0; e < 4; ++e) c[e] = 0.f;
#pragma unroll
    for (int k = 0; k < K; ++k) {
      mma(c, lo[k].x, hi[k].x, lo[k].y, hi[k].y, b[k][0], b[k][1]);
      mma(odd, lo[k].z, hi[k].z, lo[k].w, hi[k].w, b[k][2], b[k][3]);
    }
#pragma unroll
    for (int e = 0; e < 4; ++e) c[e] += odd[e];
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
      float c[4];
      rotate.run(c);
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int row = job.tile * 8 + 2 * t + e % 2;
        if (job.slot < 0 || row / S::Rows == job.slot)
          sts16(C::kRotated + row * C::HalfStride + (job.block * 16 + g + e / 2 * 8) * 2, __half_as_ushort(__float2half_rn(c[e])));
      }
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
  /// Asks for the matrix rows of this warp's first job of write_outputs(), behind the warp's state in its own ring, long before they are used.
  static constexpr int AheadStride = D * 2 + 16;  // bytes of a row
  static constexpr bool Ahead = C::RingBytes - C::StateBytes >= 16 * AheadStride;
  __device__ __forceinline__ void ask_inverse_matrix(int pairs) const {
    const bool per_head = p.inverse_head_stride != 0;
    if (!Ahead || !p.inverse_matrix || warp >= job_count(per_head, pairs)) return;
    const Job job = job_at(per_head, warp);
    const std::uint16_t* from =
        p.inverse_matrix + (job.slot >= 0 ? pair_word(job.slot, 1) * p.inverse_head_stride : 0) + job.block * 16 * D + lane * 8;
    constexpr int Chunks = D / 8;  // of 16 bytes, a row
    static_assert(!Ahead || 32 % Chunks == 0);
    const std::uint32_t to = C::ring(warp) + C::StateBytes + lane / Chunks * AheadStride + lane % Chunks * 16;
#pragma unroll
    for (int i = 0; i < D / 16; ++i) copy_async_16(to + i * (32 / Chunks) * AheadStride, from + i * 256);
    copy_async_commit();
  }
  /// Finished rows (kRotated, fp16, normalised) of the wanted pairs, rotated back, to the output.
  __device__ __forceinline__ void write_outputs(int pairs) const {
    const bool per_head = p.inverse_matrix && p.inverse_head_stride != 0;
    const int jobs = job_count(per_head, pairs);
#pragma unroll 1
    for (int i = warp; i < jobs; i += kWarps) {
      const Job job = job_at(per_head, i);
      std::uint16_t* out[2];  // where this lane's two rows go, null: nowhere
      const float* centre[2];
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int row = job.tile * 8 + 2 * t + e, slot = min(row / S::Rows, pairs - 1), r = row % S::Rows;
        const int head = pair_word(slot, 1), dim = job.block * 16 + g;
        const bool wanted = row < pairs * S::Rows && r < rows() && pair_word(slot, 2) && (job.slot < 0 || slot == job.slot);
        out[e] = wanted ? static_cast<std::uint16_t*>(p.out) + row_offset(pair_word(slot, 0), head, r) + dim : nullptr;
        const bool sees_a_token =
            pair_word(slot, 3) - p.q_len + (r * p.group_reciprocal >> 16) >= 0;  // without one the output is 0, not the centre
        centre[e] = p.v_centre && p.inverse_matrix && sees_a_token ? p.v_centre + head * D + dim : nullptr;
      }
      float c[4];
      if (p.inverse_matrix) {
        Rotate rotate;
        if (Ahead && i < kWarps) {
          copy_async_wait<0>();
          __syncwarp();
          rotate.load_matrix_shared(C::ring(warp) + C::StateBytes, AheadStride, lane);
        } else {
          load_job_matrix(rotate, p.inverse_matrix, p.inverse_head_stride, job);
        }
        rotate.load_rows(lane, [&](int j, std::uint32_t* b) { lds128(C::kRotated + (job.tile * 8 + g) * C::HalfStride + j * 2, b); });
        rotate.run(c);
      } else {
#pragma unroll
        for (int e = 0; e < 4; ++e)
          c[e] = half_bits_to_float(
              lds16(C::kRotated + (job.tile * 8 + 2 * t + e % 2) * C::HalfStride + (job.block * 16 + g + e / 2 * 8) * 2));
      }
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        if (!out[e % 2]) continue;
        const float v = c[e] + (centre[e % 2] ? __ldg(centre[e % 2] + e / 2 * 8) : 0.f);
        out[e % 2][e / 2 * 8] = p.q_is_bf16 ? __bfloat16_as_ushort(__float2bfloat16_rn(v)) : __half_as_ushort(__float2half_rn(v));
      }
    }
  }
};

}  // namespace tq4::gpu::fused
