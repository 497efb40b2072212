// dequant: planes back to rows, in rotated or original space. Rotated rows of plain scalar codecs: a thread reads the codes of 8 coordinates and
// writes them. Original space of scalar codecs: the tensor cores (tiles.cuh). The rest, as the CPU does: a block takes 16 rows of one head,
// a warp decodes a row at a time.
#include <bit>

#include "cuda/dequant/dequant.cuh"
#include "cuda/dequant/hadamard.cuh"
#include "cuda/dequant/hopper_planes.h"
#include "cuda/dequant/tiles.cuh"
#include "cuda/launch.cuh"

namespace tq4::gpu {
namespace {

struct DequantArgs {
  RowCodec codec;
  EncodedIn in;
  std::int64_t n;
  int heads, row_bytes, nibbles_high, rotated, dtype;
  int group_shift;  ///< log2 of dim / 8 where that is a power of two, else -1
  void* out;
  const std::int64_t* positions;
};

__global__ void __launch_bounds__(kDequantThreads) dequant_kernel(const __grid_constant__ DequantArgs a) {
  TQ4_DYNAMIC_SHARED(float, memory);
  const int dim = a.codec.dim, head = blockIdx.y;
  const std::int64_t token0 = static_cast<std::int64_t>(blockIdx.x) * kDequantRows;
  float *y = memory, *x = y + kDequantRows * dim;
  auto* codes = reinterpret_cast<unsigned char*>(x + kDequantRows * dim);
  const RowTables tables =
      load_tables(a.codec, reinterpret_cast<float*>(codes + kDequantThreads / 32 * 2 * dim), threadIdx.x, kDequantThreads);
  __syncthreads();
  decode_plane_rows(a.codec, tables, a.in, a.row_bytes, a.nibbles_high != 0, codes, y,
                    [&](int r) { return token0 + r < a.n ? (token0 + r) * a.heads + head : -1; });
  __syncthreads();
  const float* result = y;
  if (!a.rotated) {
    block_transform<kDequantRows>(inverse_transform(a.codec.t, head, dim), y, x, dim, threadIdx.x, kDequantThreads);
    if (a.codec.t.centre || a.codec.t.rope_mu) {
      for (int i = threadIdx.x; i < kDequantRows * dim; i += kDequantThreads) {
        const std::int64_t token = token0 + i / dim;
        if (token < a.n) x[i] = __fadd_rn(x[i], centre_at(a.codec, head, a.positions ? a.positions[token] : 0, i % dim));
      }
      __syncthreads();
    }
    result = x;
  }
  write_rows(result, dim, a.out, static_cast<DType>(a.dtype),
             [&](int r) { return token0 + r < a.n ? ((token0 + r) * a.heads + head) * dim : -1; });
}

constexpr int kStreamThreads = 256, kStreamGroups = 4, kStreamBlocks = 6;

/// The 24 bits at byte 3 i, of words where both that may hold them are there.
__device__ __forceinline__ unsigned load_three(const std::uint8_t* codes, std::int64_t i, std::int64_t total) {
  const std::uint8_t* p = codes + 3 * i;
  const auto shift = static_cast<unsigned>(reinterpret_cast<std::uintptr_t>(p)) & 3u;
  if (i + 2 > total || (i == 0 && shift != 0)) return p[0] | static_cast<unsigned>(p[1]) << 8 | static_cast<unsigned>(p[2]) << 16;
  const auto* word = reinterpret_cast<const unsigned*>(p - shift);
  return __funnelshift_r(__ldg(word), __ldg(word + (shift > 1 ? 1 : 0)), 8 * shift);
}

/// Rotated space, at most 4 bits, no norm correction: value = scale * centroid or scale * code + zero, straight from codes to out. A thread has
/// kStreamGroups groups of 8 coordinates in flight; centroids come from the lane that knows them, pairs (Pairs) from shared memory.
template <class Out, bool Pairs>
__global__ void __launch_bounds__(kStreamThreads, kStreamBlocks) stream_kernel(const __grid_constant__ DequantArgs a) {
  __shared__ float2 pairs[Pairs ? 256 : 1];
  const int bits = a.codec.bits, width = a.nibbles_high ? 4 : bits, groups = a.codec.dim / 8;
  const int lane = static_cast<int>(threadIdx.x) & 31, code = lane & ((1 << bits) - 1);
  float unit = 0.0f;
  if constexpr (Pairs) {
    for (int e = threadIdx.x; e < 1 << (2 * bits); e += kStreamThreads)
      pairs[e] = reinterpret_cast<const float2*>(a.codec.t.pair_points)[e];
    __syncthreads();
  } else {
    unit = a.codec.has_zero ? static_cast<float>(code) : a.codec.t.centroids[code];
  }
  wait_for_previous_kernels();
  launch_dependents();
  const std::int64_t total = a.n * a.heads * groups, step = static_cast<std::int64_t>(gridDim.x) * kStreamThreads * kStreamGroups;
  const bool words = width == 4 && reinterpret_cast<std::uintptr_t>(a.in.codes) % 4 == 0;
  for (std::int64_t first = (static_cast<std::int64_t>(blockIdx.x) * kStreamThreads + threadIdx.x - lane) * kStreamGroups + lane;
       first - lane < total; first += step) {
    unsigned w[kStreamGroups];
    float scale[kStreamGroups], zero[kStreamGroups];
#pragma unroll
    for (int q = 0; q < kStreamGroups; ++q) {
      const std::int64_t i = first + 32 * q;  // groups lie one behind the other: rows have no padding
      w[q] = 0;
      if (i >= total) continue;
      if (words) {
        w[q] = __ldcs(reinterpret_cast<const unsigned*>(a.in.codes) + i);
      } else if (width == 3) {
        w[q] = load_three(a.in.codes, i, total);
      } else {
        w[q] = static_cast<unsigned>(get_bytes(a.in.codes + i * width, width));
      }
    }
#pragma unroll
    for (int q = 0; q < kStreamGroups; ++q) {
      const std::int64_t i = first + 32 * q, row = a.group_shift >= 0 ? i >> a.group_shift : i / groups;
      scale[q] = i < total ? __ldg(a.in.scale + row) : 0.0f;
      zero[q] = i < total && a.codec.has_zero ? __ldg(a.in.zero + row) : 0.0f;
    }
#pragma unroll
    for (int q = 0; q < kStreamGroups; ++q) {
      if (a.nibbles_high) w[q] = (w[q] >> 4 & 0x0f0f0f0fu) | (w[q] & 0x0f0f0f0fu) << 4;
      float v[8];
#pragma unroll
      for (int k = 0; k < 8; k += 2) {
        float2 u;
        if constexpr (Pairs) {
          const unsigned mask = (1u << bits) - 1;
          u = pairs[(w[q] >> (k * width) & mask) | (w[q] >> ((k + 1) * width) & mask) << bits];
        } else {
          u = make_float2(__shfl_sync(~0u, unit, static_cast<int>(w[q] >> (k * width))),
                          __shfl_sync(~0u, unit, static_cast<int>(w[q] >> ((k + 1) * width))));
        }
        v[k] = a.codec.has_zero ? __fmaf_rn(scale[q], u.x, zero[q]) : __fmul_rn(scale[q], u.x);
        v[k + 1] = a.codec.has_zero ? __fmaf_rn(scale[q], u.y, zero[q]) : __fmul_rn(scale[q], u.y);
      }
      if (first + 32 * q < total)
        put_eight(a.out, sizeof(Out) == 4 ? DType::F32 : std::is_same_v<Out, __half> ? DType::F16 : DType::BF16, (first + 32 * q) * 8, v);
    }
  }
}

/// Rows of planes for inverse_tiles.
struct PlaneRows {
  InverseSide plane_side;
  EncodedIn in;
  std::int64_t n;
  int heads, row_bytes, dtype;
  void* to;
  unsigned zero = 0;
  __device__ __forceinline__ const InverseSide& side() const { return plane_side; }
  __device__ __forceinline__ void* out() const { return to; }
  __device__ __forceinline__ unsigned count() const { return static_cast<unsigned>(plane_side.codec.t.per_head ? n : n * heads); }
  __device__ __forceinline__ InverseRow row(unsigned i) const {
    const std::int64_t at = plane_side.codec.t.per_head ? static_cast<std::int64_t>(i) * heads + blockIdx.y : i;
    const int head = plane_side.codec.t.per_head ? static_cast<int>(blockIdx.y) : static_cast<int>(i % static_cast<unsigned>(heads));
    return {in.codes + at * row_bytes, 0, head, __ldcs(in.scale + at), at * plane_side.codec.dim};
  }
  __device__ __forceinline__ int image_head() const { return static_cast<int>(blockIdx.y); }
  template <int G>
  __device__ __forceinline__ void fetch(unsigned (&raw)[G], const InverseRow& row, int t) const {
    fetch_groups(raw, row.codes + G * plane_side.row_bits * t, plane_side.row_bits);
  }
  template <int G>
  __device__ __forceinline__ void spread(unsigned (&w)[G], const unsigned (&raw)[G]) const {
    spread_groups(w, raw, plane_side.row_bits);
  }
};

}  // namespace

void dequant(const DeviceCodec& codec, Side side, const DequantParams& p, Stream stream) {
  constexpr const char* kWhere = "dequant";
  DequantArgs a{};
  a.codec = row_codec(codec, side);
  require(p.n >= 0 && p.heads >= 1 && p.heads <= 65535, "n must be at least 0 and heads 1 to 65535", kWhere);
  require(p.out_dtype == DType::F16 || p.out_dtype == DType::BF16 || p.out_dtype == DType::F32, "out must be float16, bfloat16 or float32",
          kWhere);
  const bool by_head = a.codec.t.per_head || a.codec.t.centre || a.codec.t.rope_mu;
  require(p.rotated || !by_head || p.heads == codec.num_kv_heads(), "a calibrated codec decodes exactly num_kv_heads heads", kWhere);
  require(p.rotated || !a.codec.t.rope_mu || p.positions, "centring before RoPE needs positions", kWhere);
  if (p.high_nibble_first && (a.codec.kind != static_cast<int>(CodeKind::Mse) || a.codec.bits > 4)) {
    refuse("high_nibble_first is for Mse codes of at most 4 bits", kWhere);
  }
  if (p.n == 0) return;
  require(p.out && p.in.codes && (!a.codec.has_scale || p.in.scale) && (!a.codec.has_zero || p.in.zero) &&
              (!a.codec.has_signs || (p.in.signs && p.in.residual_norm)),
          "a plane that the codec has is a null pointer", kWhere);
  a.in = p.in;
  a.n = p.n;
  a.heads = p.heads;
  a.row_bytes = p.high_nibble_first ? codec.head_dim() / 2 : a.codec.code_bytes;
  a.nibbles_high = p.high_nibble_first;
  a.rotated = p.rotated;
  a.dtype = static_cast<int>(p.out_dtype);
  const auto row_groups = static_cast<unsigned>(codec.head_dim() / 8);
  a.group_shift = std::has_single_bit(row_groups) ? std::countr_zero(row_groups) : -1;
  a.out = p.out;
  a.positions = p.positions;
  const auto cuda_stream = static_cast<cudaStream_t>(stream);
  const bool streams = p.rotated && a.codec.has_scale && a.codec.bits <= 4 && !a.codec.norm_correction && !a.codec.has_signs &&
                       a.codec.outliers == 0 && reinterpret_cast<std::uintptr_t>(p.out) % 16 == 0;
  const PlanesBackArgs back{a.codec, p.in, p.n * p.heads, p.heads, p.high_nibble_first ? 4 : a.codec.bits, p.high_nibble_first, p.out};
  if (!p.rotated && !p.sequential && planes_back_serves(back, p.out_dtype, codec.device())) {
    launch_planes_back(kWhere, back, p.out_dtype, codec.device(), cuda_stream);
  } else if (streams) {
    const std::int64_t warps = (p.n * p.heads * (codec.head_dim() / 8) + 32 * kStreamGroups - 1) / (32 * kStreamGroups);
    const std::int64_t blocks = (warps * 32 + kStreamThreads - 1) / kStreamThreads;
    const auto grid =
        static_cast<unsigned>(std::min<std::int64_t>(blocks, 1 << 20));  // as many as there is work for: 10% faster than as fit
    const auto launch = [&](auto* kernel) {
      launch_kernel_early_if(launches_early(codec.device()), kWhere, {grid, kStreamThreads, 0, cuda_stream}, kernel, a);
    };
    const bool pairs = a.codec.t.pair_points != nullptr;
    switch (p.out_dtype) {
      case DType::F32: pairs ? launch(stream_kernel<float, true>) : launch(stream_kernel<float, false>); break;
      case DType::F16: pairs ? launch(stream_kernel<__half, true>) : launch(stream_kernel<__half, false>); break;
      default: pairs ? launch(stream_kernel<unsigned short, true>) : launch(stream_kernel<unsigned short, false>);
    }
  } else if (!p.rotated && !p.sequential && inverse_serves(a.codec, p.out, p.out_dtype, codec.device()) &&
             p.n <= (std::int64_t{1} << 31) / p.heads - 64 * p.heads && reinterpret_cast<std::uintptr_t>(p.in.codes) % 16 == 0) {
    const PlaneRows rows{{a.codec, p.high_nibble_first ? 4 : a.codec.bits, p.high_nibble_first, inverse_parts(a.codec, p.out_dtype)},
                         p.in,
                         p.n,
                         p.heads,
                         a.row_bytes,
                         a.dtype,
                         p.out};
    const bool by_head = a.codec.t.per_head;
    if (hadamard_back_serves(a.codec, p.out_dtype)) {
      launch_hadamard_back(kWhere, rows, p.n * p.heads, 1, 1, a.codec.dim, codec.device(), cuda_stream);
    } else {
      launch_inverse(kWhere, rows, by_head ? p.n : p.n * p.heads, by_head ? static_cast<unsigned>(p.heads) : 1u, 1, a.codec.dim,
                     codec.device(), cuda_stream);
    }
  } else {
    const std::size_t shared = dequant_shared(a.codec, table_bytes(a.codec));
    allow_shared(dequant_kernel, shared, codec.device().shared_bytes_per_block, kWhere);
    const dim3 grid(static_cast<unsigned>((p.n + kDequantRows - 1) / kDequantRows), static_cast<unsigned>(p.heads));
    launch_kernel(kWhere, {grid, kDequantThreads, shared, cuda_stream}, dequant_kernel, a);
  }
}

}  // namespace tq4::gpu
