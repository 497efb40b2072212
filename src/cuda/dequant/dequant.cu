// dequant: planes back to rows, in rotated or original space. A block takes 16 rows of one head; a warp decodes a row at a time. Rotated
// rows of plain scalar codecs take a kernel of their own with no shared rows: a thread reads the codes of 8 coordinates and writes them.
#include <bit>

#include "cuda/dequant/dequant.cuh"
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

/// Rotated space, at most 4 bits, no norm correction: value = scale * (table entry) or scale * code + zero, straight from codes to out.
template <class Out>
__global__ void __launch_bounds__(256) stream_kernel(const __grid_constant__ DequantArgs a) {
  __shared__ float2 table[256];
  const int width = a.nibbles_high ? 4 : a.codec.bits, codes = 1 << a.codec.bits;
  for (int e = threadIdx.x; e < 1 << (2 * width); e += blockDim.x) {
    int even = e & ((1 << width) - 1), odd = e >> width;
    if (a.nibbles_high) {
      const int swap = even;
      even = odd;
      odd = swap;
    }
    float2 v = make_float2(0.0f, 0.0f);
    if (even < codes && odd < codes) {
      if (a.codec.has_zero) {
        v = make_float2(static_cast<float>(even), static_cast<float>(odd));
      } else if (a.codec.t.pair_points) {
        v = reinterpret_cast<const float2*>(a.codec.t.pair_points)[even | odd << a.codec.bits];
      } else {
        v = make_float2(a.codec.t.centroids[even], a.codec.t.centroids[odd]);
      }
    }
    table[e] = v;
  }
  __syncthreads();
  const int groups = a.codec.dim / 8;
  const std::int64_t total = a.n * a.heads * groups, step = static_cast<std::int64_t>(gridDim.x) * blockDim.x;
  const unsigned mask = (1u << (2 * width)) - 1;
#pragma unroll 2
  for (std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < total; i += step) {
    const std::int64_t row = a.group_shift >= 0 ? i >> a.group_shift : i / groups;
    const int g = static_cast<int>(i - row * groups);
    auto bits = static_cast<unsigned>(get_bytes(a.in.codes + row * a.row_bytes + g * width, width));
    const float scale = a.in.scale[row], zero = a.codec.has_zero ? a.in.zero[row] : 0.0f;
    float v[8];
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const float2 unit = table[bits & mask];
      bits >>= 2 * width;
      v[2 * k] = a.codec.has_zero ? __fmaf_rn(scale, unit.x, zero) : __fmul_rn(scale, unit.x);
      v[2 * k + 1] = a.codec.has_zero ? __fmaf_rn(scale, unit.y, zero) : __fmul_rn(scale, unit.y);
    }
    if constexpr (sizeof(Out) == 4) {
      auto* to = reinterpret_cast<float4*>(static_cast<float*>(a.out) + i * 8);
      to[0] = make_float4(v[0], v[1], v[2], v[3]);
      to[1] = make_float4(v[4], v[5], v[6], v[7]);
    } else {
      unsigned w[4];
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        if constexpr (std::is_same_v<Out, __half>) {
          const __half2 h = __floats2half2_rn(v[2 * k], v[2 * k + 1]);
          w[k] = *reinterpret_cast<const unsigned*>(&h);
        } else {
          w[k] = to_bf16_bits(v[2 * k]) | static_cast<unsigned>(to_bf16_bits(v[2 * k + 1])) << 16;
        }
      }
      *reinterpret_cast<uint4*>(static_cast<unsigned short*>(a.out) + i * 8) = make_uint4(w[0], w[1], w[2], w[3]);
    }
  }
}

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
  if (streams) {
    const std::int64_t groups = p.n * p.heads * (codec.head_dim() / 8);
    const auto grid = static_cast<unsigned>(std::min<std::int64_t>((groups + 255) / 256, codec.device().sm_count * 8));
    if (p.out_dtype == DType::F32) {
      launch_kernel(kWhere, {grid, 256, 0, cuda_stream}, stream_kernel<float>, a);
    } else if (p.out_dtype == DType::F16) {
      launch_kernel(kWhere, {grid, 256, 0, cuda_stream}, stream_kernel<__half>, a);
    } else {
      launch_kernel(kWhere, {grid, 256, 0, cuda_stream}, stream_kernel<unsigned short>, a);
    }
  } else {
    const std::size_t shared = dequant_shared(a.codec, table_bytes(a.codec));
    allow_shared(dequant_kernel, shared, codec.device().shared_bytes_per_block, kWhere);
    const dim3 grid(static_cast<unsigned>((p.n + kDequantRows - 1) / kDequantRows), static_cast<unsigned>(p.heads));
    launch_kernel(kWhere, {grid, kDequantThreads, shared, cuda_stream}, dequant_kernel, a);
  }
}

}  // namespace tq4::gpu
