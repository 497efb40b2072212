// General decode attention, the main launch: one block of 4 warps works on one (sequence, kv head, 16 query rows, part of the context).
// The query rows of a kv head (its group of query heads times q_len) are the M side of m16n8k16. Every warp walks its own 16-token tiles:
// raw bytes are staged by cp.async one tile ahead, become fp16 units (centroids, levels) in a shared tile, first for K, then for V; scales
// of K multiply logits, scales of V multiply probabilities, so a unit is never scaled. Each warp keeps its own running maximum, sum and
// output, merged through shared memory at the end, always in the same order: results do not change from run to run.
//
// V's scale enters the fp16 probability as scale / reference, the reference being the largest |scale| so far; like the running maximum it
// rescales the sums when it grows. Zeros of uniform values add up to one scalar a row.
#include <cuda_fp16.h>

#include <algorithm>

#include "cuda/decode_attention/general.h"
#include "cuda/decode_attention/splits.h"
#include "cuda/launch.cuh"
#include "cuda/unpack.cuh"

namespace tq4::gpu {
namespace {

constexpr int kWarps = kSplitTiles, kThreads = kWarps * 32;
constexpr float kLog2e = 1.4426950408889634f;

/// Byte offsets of the parts of shared memory; the same on host and device.
struct SharedPlan {
  int pitch;                     ///< of tiles and of the query, in halves
  int k_stage_row, v_stage_row;  ///< bytes a token takes in a stage (row layouts)
  int k_stage, v_stage;          ///< bytes of a stage
  int stages;
  int query, rope, warp0, warp_bytes, tile, stage0, trig, bytes;
};

__host__ __device__ inline int up16(int n) { return (n + 15) / 16 * 16; }

__host__ __device__ inline SharedPlan shared_plan(const GeneralArgs& a, int stages) {
  SharedPlan s;
  const int dim16 = up16(a.head_dim);
  s.pitch = dim16 + 8;
  s.stages = stages;
  s.k_stage_row = up16(a.k.row_bytes) + 16;
  s.v_stage_row = up16(a.v.row_bytes) + 16;
  s.k_stage = a.k.mode == kHalf ? 0 : 16 * s.k_stage_row + 16;
  s.v_stage = a.v.mode == kHalf ? 0 : 16 * s.v_stage_row + 16;
  s.query = 2 * kTableBytes;
  s.rope = s.query + 16 * s.pitch * 2;
  const bool rope = a.k_tables.rope_mu != nullptr;
  s.warp0 = s.rope + (rope ? 16 * (a.rope_dim / 2) * 8 : 0);
  s.tile = 0;
  s.stage0 = 16 * s.pitch * 2;
  s.trig = s.stage0 + stages * (s.k_stage + s.v_stage);
  s.warp_bytes = s.trig + (rope ? 16 * (a.rope_dim / 2 + 1) * 8 : 0);
  // The output of 16 rows in fp32 is gathered over the warps' memory at the end.
  const int gather = 16 * a.v_chunk * 4 + kWarps * 16 * 16;
  s.bytes = s.warp0 + (kWarps * s.warp_bytes > gather ? kWarps * s.warp_bytes : gather);
  return s;
}

/// A lane's token of one tile while its bytes are under way.
struct Pending {
  const std::uint8_t *k, *v;  ///< fp16: rows. Else the low bits say where in the 16-byte chunk the row begins
  float scale, zero;          ///< lanes 0..15: K's, lanes 16..31: V's
  bool valid;
};

/// What a block works on.
struct Work {
  int sequence, head, part, row_tile, chunk;
  bool exact;
  bool original;                     ///< exact tokens in original space: other queries, no centre
  int seq_len, sinks, window_begin;  ///< exact tokens: [0, sinks) and [window_begin, seq_len)
  int begin, end;                    ///< token indices (exact: index among the exact tokens)
};

__device__ __forceinline__ int position_of(const Work& w, int index) {
  if (!w.exact || index < w.sinks) return index;
  return w.window_begin + index - w.sinks;
}

__device__ __forceinline__ Work make_work(const GeneralArgs& a) {
  Work w;
  w.sequence = blockIdx.z;
  w.part = blockIdx.x;
  int y = blockIdx.y;
  w.chunk = y % a.v_chunks;
  y /= a.v_chunks;
  w.row_tile = y % a.row_tiles;
  w.head = y / a.row_tiles;
  w.exact = w.part == a.splits;
  w.original = w.exact && !a.exact.rotated;
  w.seq_len = a.seq_lens[w.sequence];
  w.sinks = min(a.exact.sinks, w.seq_len);
  w.window_begin = a.exact.window > 0 ? max(w.sinks, w.seq_len - a.exact.window) : w.seq_len;
  const int first_visible = a.window > 0 ? max(0, w.seq_len - a.q_len - a.window + 1) : 0;
  if (w.exact) {
    w.begin = 0;
    w.end = w.sinks + max(0, w.seq_len - w.window_begin);
    return w;
  }
  const int from = max(w.sinks, first_visible), to = max(from, w.window_begin);
  const int first_tile = from / 16, tiles = (to + 15) / 16 - first_tile;
  const int per_split = (tiles + a.splits * kWarps - 1) / (a.splits * kWarps) * kWarps;
  w.begin = max(from, (first_tile + w.part * per_split) * 16);
  w.end = min(to, (first_tile + (w.part + 1) * per_split) * 16);
  return w;
}

__device__ __forceinline__ Pending exact_token(const GeneralArgs& a, const Work& w, int index) {
  Pending p{nullptr, nullptr, 1.0f, 0.0f, index < w.end};
  const int position = position_of(w, p.valid ? index : w.begin);
  const std::int64_t head = static_cast<std::int64_t>(w.sequence) * a.num_kv_heads + w.head;
  if (index < w.sinks) {
    const std::int64_t row = (head * a.exact.sinks + position) * a.head_dim;
    p.k = reinterpret_cast<const std::uint8_t*>(a.exact.sink_k + row);
    p.v = reinterpret_cast<const std::uint8_t*>(a.exact.sink_v + row);
  } else if (p.valid) {
    const std::int64_t row = (head * a.exact.window + position % a.exact.window) * a.head_dim;
    p.k = reinterpret_cast<const std::uint8_t*>(a.exact.window_k + row);
    p.v = reinterpret_cast<const std::uint8_t*>(a.exact.window_v + row);
  }
  return p;
}

__device__ __forceinline__ void stage_row(unsigned shared, const std::uint8_t* row, int bytes, const std::uint8_t* end, int half) {
  const int shift = static_cast<int>(reinterpret_cast<std::uintptr_t>(row) & 15);
  const std::uint8_t* from = row - shift;
  const int chunks = (shift + bytes + 15) >> 4;
  for (int c = half; c < chunks; c += 2) {
    const std::int64_t left = end - (from + c * 16);
    copy_async_16(shared + c * 16, from + c * 16, left >= 16 ? 16 : static_cast<int>(left));
  }
}

/// Starts the copies of tile `tile` to stage memory and loads the lane's scale. Lanes past the end read the last token's place.
__device__ __forceinline__ Pending issue(const GeneralArgs& a, const SharedPlan& s, const Work& w, int tile, unsigned stage, int lane) {
  const int token = lane & 15, half = lane >> 4;
  const int index = tile * 16 + token;
  if (w.exact) return exact_token(a, w, index);
  const CacheView& c = a.cache;
  Pending p;
  p.valid = index >= w.begin && index < w.end;
  const int position = min(max(index, w.begin), w.end - 1);
  const int block = c.block_shift >= 0 ? position >> c.block_shift : position / c.block_size;
  const std::int64_t page = a.block_table[w.sequence * a.block_table_stride + block];
  TokenRef ref = token_ref(c, page, position - block * c.block_size, w.head);
  const SideView& side = half == 0 ? a.k : a.v;
  const PartView& part = half == 0 ? c.k : c.v;
  if (c.native) ref.t = token;
  p.scale = side.has_scale ? load_scale(part, scale_ptr(c, part, ref, w.head)) : 1.0f;
  p.zero = 0.0f;
  if (side.has_zero) {
    p.zero = __half2float(*reinterpret_cast<const __half*>(zero_ptr(c, part, ref, w.head)));
    p.zero = fmaf(p.scale, side.level_offset, p.zero);
  }
  const unsigned v_stage = stage + s.k_stage;
  if (c.native) {
    p.k = ref.base + c.k.codes;
    p.v = ref.base + c.v.codes;
    if (a.k.mode != kHalf) {
      for (int i = lane; i < a.k.row_bytes; i += 32) copy_async_16(stage + i * 16, p.k + i * 16);
    }
    if (a.v.mode != kHalf) {
      for (int i = lane; i < a.v.row_bytes; i += 32) copy_async_16(v_stage + i * 16, p.v + i * 16);
    }
  } else {
    p.k = codes_row(c.k, ref, w.head);
    p.v = codes_row(c.v, ref, w.head);
    if (a.k.mode != kHalf) stage_row(stage + token * s.k_stage_row, p.k, a.k.row_bytes, c.end, half);
    if (a.v.mode != kHalf) stage_row(v_stage + token * s.v_stage_row, p.v, a.v.row_bytes, c.end, half);
  }
  return p;
}

/// fp16 rows straight to the tile. `native_v_piece` > 0: the bytes are in the order of a native tile's V.
__device__ inline void fill_half_tile(const std::uint8_t* row, int token_in_tile, int native_v_piece, int native_k_row, int head_dim,
                                      int first, int count, bool valid, __half* tile, int pitch, int lane) {
  const int token = lane & 15, groups = head_dim >> 3, half_groups = (groups + 1) >> 1;
  for (int i = 0; i < half_groups; ++i) {
    const int g = (lane >> 4) * half_groups + i;
    const int column = g * 8 - first;
    if (g >= groups || column < 0 || column >= count) continue;
    uint4 v = make_uint4(0, 0, 0, 0);
    if (valid) {
      unsigned short e[8];
#pragma unroll
      for (int b = 0; b < 8; ++b) {
        const int byte = (g * 8 + b) * 2;
        const int o = native_v_piece > 0 ? native_v_byte(native_v_piece, token_in_tile, byte) : native_k_row * token_in_tile + byte;
        e[b] = *reinterpret_cast<const unsigned short*>(row + o);
      }
      v = make_uint4(e[0] | e[1] << 16, e[2] | e[3] << 16, e[4] | e[5] << 16, e[6] | e[7] << 16);
    }
    *reinterpret_cast<uint4*>(tile + token * pitch + column) = v;
  }
}

/// Queries of this block's 16 rows to shared memory (missing rows and padding are 0).
__device__ inline void load_query(const GeneralArgs& a, const SharedPlan& s, const Work& w, __half* query) {
  const std::uint16_t* source = w.original ? a.q_exact : a.q_rot;
  const int rows = a.q_len * a.group, dim16 = up16(a.head_dim);
  for (int i = threadIdx.x; i < 16 * dim16 / 8; i += kThreads) {
    const int r = i / (dim16 / 8), g = i % (dim16 / 8), row = w.row_tile * 16 + r;
    uint4 v = make_uint4(0, 0, 0, 0);
    if (row < rows && g * 8 < a.head_dim) {
      const std::int64_t q_row =
          (static_cast<std::int64_t>(w.sequence) * a.q_len + row / a.group) * a.num_q_heads + w.head * a.group + row % a.group;
      v = *reinterpret_cast<const uint4*>(source + q_row * a.head_dim + g * 8);
    }
    *reinterpret_cast<uint4*>(query + r * s.pitch + g * 8) = v;
  }
}

/// Centring before RoPE: q . R_p mu = sum_i cos_i C_i + sin_i S_i with C = q_a mu_a + q_b mu_b, S = q_b mu_a - q_a mu_b, (a, b) = (i, i + rope_dim/2).
__device__ inline void load_rope(const GeneralArgs& a, const Work& w, float2* rope) {
  const int pairs = a.rope_dim / 2, rows = a.q_len * a.group;
  const float* mu = a.k_tables.rope_mu + w.head * a.head_dim;
  for (int i = threadIdx.x; i < 16 * pairs; i += kThreads) {
    const int r = i / pairs, j = i % pairs, row = w.row_tile * 16 + r;
    float2 v = make_float2(0.0f, 0.0f);
    if (row < rows) {
      const std::int64_t q_row =
          (static_cast<std::int64_t>(w.sequence) * a.q_len + row / a.group) * a.num_q_heads + w.head * a.group + row % a.group;
      const float qa = load_element(a.q, static_cast<DType>(a.q_dtype), q_row * a.head_dim + j);
      const float qb = load_element(a.q, static_cast<DType>(a.q_dtype), q_row * a.head_dim + j + pairs);
      v = make_float2((qa * mu[j] + qb * mu[j + pairs]) * a.sm_scale, (qb * mu[j] - qa * mu[j + pairs]) * a.sm_scale);
    }
    rope[i] = v;
  }
}

/// cos and sin of every token of the tile, [16][pairs + 1].
__device__ inline void fill_trig(const GeneralArgs& a, const Work& w, int tile, float2* trig, int lane) {
  const int pairs = a.rope_dim / 2;
  for (int i = lane; i < 16 * pairs; i += 32) {
    const int t = i / pairs, j = i % pairs;
    const std::uint64_t phase = static_cast<std::uint64_t>(position_of(w, tile * 16 + t)) * a.k_tables.rope_turns[j];
    const float turns = static_cast<float>(static_cast<int>(phase >> 32)) * 4.656612873077393e-10f;  // 2^-31: half turns, in [-1, 1)
    float2 v;
    sincospif(turns, &v.y, &v.x);
    trig[t * (pairs + 1) + j] = v;
  }
}

template <int HD>
__global__ void __launch_bounds__(kThreads, HD <= 128 ? 4 : 2)
    split_kernel(const __grid_constant__ GeneralArgs a, const __grid_constant__ SharedPlan s) {
  TQ4_DYNAMIC_SHARED(unsigned char, shared);
  const Work w = make_work(a);
  const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, token = lane & 15;
  const int rows = a.q_len * a.group;
  const int quad_row = lane >> 2, quad_column = 2 * (lane & 3);

  // Which of the two fragment rows (quad_row, quad_row + 8) exist, and what belongs to them.
  bool live[2];
  std::int64_t q_row[2];
  int q_position[2];
  float factor[2], bias[2], sum_factor[2], slope[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int row = w.row_tile * 16 + quad_row + 8 * i;
    live[i] = row < rows;
    const int qi = live[i] ? row / a.group : 0, head = w.head * a.group + (live[i] ? row % a.group : 0);
    q_row[i] = (static_cast<std::int64_t>(w.sequence) * a.q_len + qi) * a.num_q_heads + head;
    q_position[i] = w.seq_len - a.q_len + qi;
    const float4 info = a.q_info[q_row[i]];
    factor[i] = w.original ? info.y : info.x;
    bias[i] = w.original ? 0.0f : info.z;
    sum_factor[i] = info.w;
    slope[i] = a.alibi_slopes ? a.alibi_slopes[head] : 0.0f;
  }
  if (w.begin >= w.end) {  // an empty part: the merge skips it
    if (w.chunk == 0 && warp == 0 && (lane & 3) == 0) {
      for (int i = 0; i < 2; ++i) {
        if (live[i]) a.part_ml[q_row[i] * a.parts + w.part] = make_float2(-INFINITY, 0.0f);
      }
    }
    return;
  }

  auto* query = reinterpret_cast<__half*>(shared + s.query);
  auto* rope = reinterpret_cast<float2*>(shared + s.rope);
  unsigned char* own = shared + s.warp0 + warp * s.warp_bytes;
  auto* tile_memory = reinterpret_cast<__half*>(own + s.tile);
  auto* trig = reinterpret_cast<float2*>(own + s.trig);
  const bool with_rope = a.k_tables.rope_mu != nullptr && !w.original;
  build_table(a.k, shared, threadIdx.x, kThreads);
  build_table(a.v, shared + kTableBytes, threadIdx.x, kThreads);
  load_query(a, s, w, query);
  if (with_rope) load_rope(a, w, rope);
  for (int i = lane; i < 16 * s.pitch / 8; i += 32) reinterpret_cast<uint4*>(tile_memory)[i] = make_uint4(0, 0, 0, 0);
  __syncthreads();

  const bool k_half = w.exact || a.k.mode == kHalf, v_half = w.exact || a.v.mode == kHalf;
  const bool k_scaled = !w.exact && a.k.has_scale, k_zeros = !w.exact && a.k.has_zero;
  const bool v_scaled = !w.exact && a.v.has_scale, v_zeros = !w.exact && a.v.has_zero;
  const int native = w.exact ? 0 : a.cache.native;
  const int first = w.chunk * a.v_chunk, count = min(a.v_chunk, a.head_dim - first);
  const int k_steps = up16(a.head_dim) / 16;

  float out[HD / 8][4];
#pragma unroll
  for (int n = 0; n < HD / 8; ++n) out[n][0] = out[n][1] = out[n][2] = out[n][3] = 0.0f;
  float maximum[2] = {-INFINITY, -INFINITY}, sum[2] = {0.0f, 0.0f}, zero_sum[2] = {0.0f, 0.0f};
  float reference = v_scaled ? 0.0f : 1.0f;

  const Stage v_stage = !native           ? row_stage(own, 0)
                        : a.cache.v_units ? unit_stage(own, false)
                                          : native_v_stage(own, a.cache.v_piece, a.v.row_bits, token);

  const int tile_end = (w.end + 15) / 16;
  int tile = w.begin / 16 + warp;
  const unsigned stage_base = shared_address(own + s.stage0);
  const int stage_bytes = s.k_stage + s.v_stage;
  Pending next{};
  if (tile < tile_end) next = issue(a, s, w, tile, stage_base, lane);
  copy_async_commit();

  for (int step = 0; tile < tile_end; ++step, tile += kWarps) {
    const Pending now = next;
    const int stage_now = s.stages == 2 ? step & 1 : 0;
    if (s.stages == 2) {
      if (tile + kWarps < tile_end) next = issue(a, s, w, tile + kWarps, stage_base + (stage_now ^ 1) * stage_bytes, lane);
      copy_async_commit();
      copy_async_wait<1>();
    } else {
      copy_async_wait<0>();
    }
    __syncwarp();

    // K: units, then S = Q K^T.
    float scale = now.scale, zero = now.zero;
    const unsigned char* stage = own + s.stage0 + stage_now * stage_bytes;
    if (k_half) {
      fill_half_tile(now.k, native ? token : 0, 0, a.k.row_bytes, a.head_dim, 0, a.head_dim, now.valid, tile_memory, s.pitch, lane);
    } else {
      const int offset =
          native ? token * a.k.row_bytes : token * s.k_stage_row + static_cast<int>(reinterpret_cast<std::uintptr_t>(now.k) & 15);
      const Stage raw = native && a.cache.k_units ? unit_stage(stage, true) : row_stage(stage, offset);
      float squares = fill_tile(a.k, shared, raw, a.head_dim, {tile_memory, s.pitch, 0, a.head_dim}, now.valid, lane);
      if (a.k.norm_correction) {
        squares += __shfl_xor_sync(~0u, squares, 16);
        if (lane < 16) scale *= rsqrtf(squares + 1e-16f);
      }
    }
    if (with_rope) fill_trig(a, w, tile, trig, lane);
    __syncwarp();
    float logits[2][4] = {};
    {
      const unsigned q_address = shared_address(query + (lane & 15) * s.pitch + (lane >> 4) * 8);
      const unsigned k_address = shared_address(tile_memory + ((lane & 7) + (lane >> 4) * 8) * s.pitch + ((lane >> 3) & 1) * 8);
#pragma unroll 4
      for (int kk = 0; kk < k_steps; ++kk) {
        unsigned qf[4], kf[4];
        ldmatrix_x4(qf, q_address + kk * 32);
        ldmatrix_x4(kf, k_address + kk * 32);
        mma_16816(logits[0], qf, kf[0], kf[1]);
        mma_16816(logits[1], qf, kf[2], kf[3]);
      }
    }
    __syncwarp();

    // V: units over the same memory.
    if (v_half) {
      fill_half_tile(now.v, native ? token : 0, native ? a.cache.v_piece : 0, 0, a.head_dim, first, count, now.valid, tile_memory, s.pitch,
                     lane);
    } else {
      const unsigned char* v_bytes = stage + s.k_stage;
      const int offset = token * s.v_stage_row + static_cast<int>(reinterpret_cast<std::uintptr_t>(now.v) & 15);
      Stage raw = v_stage;
      raw.words = reinterpret_cast<const unsigned*>(v_bytes);
      if (!native) raw.offset = offset;
      float squares = fill_tile(a.v, shared + kTableBytes, raw, a.head_dim, {tile_memory, s.pitch, first, count}, now.valid, lane);
      if (a.v.norm_correction) {
        squares += __shfl_xor_sync(~0u, squares, 16);
        if (lane >= 16) scale *= rsqrtf(squares + 1e-16f);
      }
    }
    if (!now.valid) scale = zero = 0.0f;  // bytes of slots nobody wrote may be NaN

    // Logits, softmax.
    float tile_max[2] = {-INFINITY, -INFINITY};
    float vs[4], vz[4] = {};
#pragma unroll
    for (int j = 0; j < 4; ++j) {  // j = 2 * n tile + column
      const int column = quad_column + (j & 1) + (j >> 1) * 8;
      const int index = tile * 16 + column, position = position_of(w, index);
      const float ks = k_scaled ? __shfl_sync(~0u, scale, column) : 1.0f;
      const float kz = k_zeros ? __shfl_sync(~0u, zero, column) : 0.0f;
      vs[j] = v_scaled ? __shfl_sync(~0u, scale, column + 16) : 1.0f;
      if (v_zeros) vz[j] = __shfl_sync(~0u, zero, column + 16);
      const bool in_part = index >= w.begin && index < w.end;
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        float& logit = logits[j >> 1][(j & 1) + 2 * i];
        logit = fmaf(logit * ks, factor[i], bias[i]);
        if (k_zeros) logit = fmaf(kz, sum_factor[i], logit);
        if (with_rope) {
          const int pairs = a.rope_dim / 2;
          const float2 *c = rope + (quad_row + 8 * i) * pairs, *cs = trig + column * (pairs + 1);
          for (int d = 0; d < pairs; ++d) logit = fmaf(c[d].x, cs[d].x, fmaf(c[d].y, cs[d].y, logit));
        }
        if (a.soft_cap > 0.0f) logit = a.soft_cap * tanhf(logit / a.soft_cap);
        logit = fmaf(slope[i], static_cast<float>(position - q_position[i]), logit);
        const bool seen = in_part && live[i] && position <= q_position[i] && (a.window == 0 || position > q_position[i] - a.window);
        if (!seen) logit = -INFINITY;
        tile_max[i] = fmaxf(tile_max[i], logit);
      }
    }
    float rescale[2];
    float new_reference = reference;
    if (v_scaled) {
      const unsigned largest = __reduce_max_sync(~0u, lane >= 16 ? __float_as_uint(fabsf(scale)) : 0u);
      new_reference = fmaxf(reference, __uint_as_float(largest));
    }
    const float reference_ratio = new_reference > 0.0f ? reference / new_reference : 1.0f;
    const float reference_inverse = new_reference > 0.0f ? 1.0f / new_reference : 0.0f;
    reference = new_reference;
    unsigned p[4];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      tile_max[i] = fmaxf(tile_max[i], __shfl_xor_sync(~0u, tile_max[i], 1));
      tile_max[i] = fmaxf(tile_max[i], __shfl_xor_sync(~0u, tile_max[i], 2));
      const float m = fmaxf(maximum[i], tile_max[i]);
      const float base = m == -INFINITY ? 0.0f : m;
      const float alpha = exp2f((maximum[i] - base) * kLog2e);
      maximum[i] = m;
      rescale[i] = alpha * reference_ratio;
      float total = 0.0f, zeros = 0.0f, weight[4];
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const float e = exp2f((logits[j >> 1][(j & 1) + 2 * i] - base) * kLog2e);
        total += e;
        zeros = fmaf(e, vz[j], zeros);
        weight[j] = e * (vs[j] * reference_inverse);
      }
      sum[i] = fmaf(sum[i], alpha, total);
      zero_sum[i] = fmaf(zero_sum[i], alpha, zeros);
      const __half2 low = __floats2half2_rn(weight[0], weight[1]), high = __floats2half2_rn(weight[2], weight[3]);
      p[i] = *reinterpret_cast<const unsigned*>(&low);
      p[2 + i] = *reinterpret_cast<const unsigned*>(&high);
    }
    if (__any_sync(~0u, rescale[0] != 1.0f || rescale[1] != 1.0f)) {
#pragma unroll
      for (int n = 0; n < HD / 8; ++n) {
        out[n][0] *= rescale[0];
        out[n][1] *= rescale[0];
        out[n][2] *= rescale[1];
        out[n][3] *= rescale[1];
      }
    }
    __syncwarp();
    {
      const unsigned v_address = shared_address(tile_memory + ((lane & 7) + ((lane >> 3) & 1) * 8) * s.pitch + (lane >> 4) * 8);
#pragma unroll
      for (int n = 0; n < HD / 16; ++n) {
        if (n * 16 < count) {
          unsigned vf[4];
          ldmatrix_x4_trans(vf, v_address + n * 32);
          mma_16816(out[2 * n], p, vf[0], vf[1]);
          mma_16816(out[2 * n + 1], p, vf[2], vf[3]);
        }
      }
    }
    __syncwarp();
    if (s.stages == 1) {
      if (tile + kWarps < tile_end) next = issue(a, s, w, tile + kWarps, stage_base, lane);
      copy_async_commit();
    }
  }

  // Merge the four warps, one after the other.
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    sum[i] += __shfl_xor_sync(~0u, sum[i], 1);
    sum[i] += __shfl_xor_sync(~0u, sum[i], 2);
    zero_sum[i] += __shfl_xor_sync(~0u, zero_sum[i], 1);
    zero_sum[i] += __shfl_xor_sync(~0u, zero_sum[i], 2);
  }
  copy_async_wait<0>();
  __syncthreads();
  auto* stats = reinterpret_cast<float2*>(shared + s.warp0);  // [warps][16]
  auto* gather = reinterpret_cast<float*>(shared + s.warp0 + kWarps * 16 * 16);
  if ((lane & 3) == 0) {
    for (int i = 0; i < 2; ++i) stats[warp * 16 + quad_row + 8 * i] = make_float2(maximum[i], sum[i]);
  }
  __syncthreads();
  float weight[2], total_max[2], total_sum[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    float m = -INFINITY, l = 0.0f;
    for (int k = 0; k < kWarps; ++k) m = fmaxf(m, stats[k * 16 + quad_row + 8 * i].x);
    const float base = m == -INFINITY ? 0.0f : m;
    for (int k = 0; k < kWarps; ++k) {
      const float2 v = stats[k * 16 + quad_row + 8 * i];
      l += v.y * exp2f((v.x - base) * kLog2e);
    }
    total_max[i] = m;
    total_sum[i] = l;
    weight[i] = exp2f((maximum[i] - base) * kLog2e);
  }
  for (int turn = 0; turn < kWarps; ++turn) {
    if (warp == turn) {
#pragma unroll
      for (int n = 0; n < HD / 8; ++n) {
        if (n * 8 < count) {
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            const int i = e >> 1, column = n * 8 + quad_column + (e & 1);
            float* slot = gather + (quad_row + 8 * i) * a.v_chunk + column;
            const float value = fmaf(out[n][e], reference, zero_sum[i]) * weight[i];
            *slot = turn == 0 ? value : *slot + value;
          }
        }
      }
    }
    __syncthreads();
  }
  for (int i = threadIdx.x; i < 16 * count / 4; i += kThreads) {
    const int r = i / (count / 4), c = i % (count / 4), row = w.row_tile * 16 + r;
    if (row >= rows) continue;
    const std::int64_t to =
        (static_cast<std::int64_t>(w.sequence) * a.q_len + row / a.group) * a.num_q_heads + w.head * a.group + row % a.group;
    *reinterpret_cast<float4*>(a.part_out + (to * a.parts + w.part) * a.head_dim + first + c * 4) =
        *reinterpret_cast<const float4*>(gather + r * a.v_chunk + c * 4);
  }
  if (w.chunk == 0 && warp == 0 && (lane & 3) == 0) {
    for (int i = 0; i < 2; ++i) {
      if (live[i]) a.part_ml[q_row[i] * a.parts + w.part] = make_float2(total_max[i], total_sum[i]);
    }
  }
}

template <int HD>
void launch(const GeneralArgs& args, const DeviceInfo& device, cudaStream_t stream) {
  SharedPlan plan = shared_plan(args, 2);
  if (static_cast<std::size_t>(plan.bytes) > device.shared_bytes_per_block) plan = shared_plan(args, 1);
  allow_shared(split_kernel<HD>, static_cast<std::size_t>(plan.bytes), device.shared_bytes_per_block, "decode (general)");
  const dim3 grid(static_cast<unsigned>(args.parts), static_cast<unsigned>(args.num_kv_heads * args.row_tiles * args.v_chunks),
                  static_cast<unsigned>(args.num_seqs));
  launch_kernel("decode (general)", {grid, kThreads, static_cast<std::size_t>(plan.bytes), stream}, split_kernel<HD>, args, plan);
}

}  // namespace

void launch_general_split(const GeneralArgs& args, const DeviceInfo& device, cudaStream_t stream) {
  if (args.v_chunk <= 64) {
    launch<64>(args, device, stream);
  } else if (args.v_chunk <= 128) {
    launch<128>(args, device, stream);
  } else {
    launch<256>(args, device, stream);
  }
}

}  // namespace tq4::gpu
