// The first half of prefill: compressed planes to fp16 in original space, new tokens behind them; and the fp8 output of a layer step.
#include "cuda/dequant/dequant.cuh"
#include "cuda/launch.cuh"
#include "cuda/prefill_attention/flash.h"

namespace tq4::gpu {
namespace {

struct PlanesArgs {
  RowCodec codec;
  EncodedIn in;
  const std::int32_t* cu_k;
  int heads, row_bytes, nibbles_high;
  std::uint16_t* out;
  std::int64_t capacity;
};

__global__ void __launch_bounds__(kDequantThreads) planes_kernel(const __grid_constant__ PlanesArgs a) {
  TQ4_DYNAMIC_SHARED(float, memory);
  const int dim = a.codec.dim, head = blockIdx.y, sequence = blockIdx.z;
  const int begin = a.cu_k[sequence], length = static_cast<int>(min(static_cast<std::int64_t>(a.cu_k[sequence + 1] - begin), a.capacity));
  const int token0 = blockIdx.x * kDequantRows;
  if (token0 >= length) return;
  float *y = memory, *x = y + kDequantRows * dim;
  auto* codes = reinterpret_cast<unsigned char*>(x + kDequantRows * dim);
  const RowTables tables =
      load_tables(a.codec, reinterpret_cast<float*>(codes + kDequantThreads / 32 * 2 * dim), threadIdx.x, kDequantThreads);
  __syncthreads();
  decode_plane_rows(a.codec, tables, a.in, a.row_bytes, a.nibbles_high != 0, codes, y, [&](int r) {
    return token0 + r < length ? static_cast<std::int64_t>(begin + token0 + r) * a.heads + head : static_cast<std::int64_t>(-1);
  });
  block_transform<kDequantRows>(inverse_transform(a.codec.t, head, dim), y, x, dim, threadIdx.x, kDequantThreads);
  if (a.codec.t.centre || a.codec.t.rope_mu) {
    for (int i = threadIdx.x; i < kDequantRows * dim; i += kDequantThreads) {
      if (token0 + i / dim < length) x[i] = __fadd_rn(x[i], centre_at(a.codec, head, token0 + i / dim, i % dim));
    }
    __syncthreads();
  }
  const std::int64_t first = (static_cast<std::int64_t>(sequence) * a.heads + head) * a.capacity;
  write_rows(x, dim, a.out, DType::F16,
             [&](int r) { return token0 + r < length ? (first + token0 + r) * dim : static_cast<std::int64_t>(-1); });
}

__global__ void append_kernel(const __grid_constant__ AppendArgs a) {
  const int sequence = blockIdx.z, head = blockIdx.y;
  const int begin = a.cu_q[sequence], length = a.cu_q[sequence + 1] - begin, prefix = a.prefix_lens ? a.prefix_lens[sequence] : 0;
  const int elements = length * a.head_dim, step = static_cast<int>(gridDim.x * blockDim.x);
  const std::int64_t to = ((static_cast<std::int64_t>(sequence) * a.num_kv_heads + head) * a.capacity + prefix) * a.head_dim;
  for (int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x); i < elements; i += step) {
    const int token = i / a.head_dim, d = i - token * a.head_dim;
    const float k = load_element(a.k, static_cast<DType>(a.dtype), (begin + token) * a.k_token_stride + head * a.k_head_stride + d);
    const float v = load_element(a.v, static_cast<DType>(a.dtype), (begin + token) * a.v_token_stride + head * a.v_head_stride + d);
    reinterpret_cast<__half*>(a.k_out)[to + i] = __float2half_rn(k);
    reinterpret_cast<__half*>(a.v_out)[to + i] = __float2half_rn(v);
  }
}

__global__ void prefix_kernel(const std::int32_t* seq_lens, const std::int32_t* cu_q, std::int32_t* prefix_lens, int num_seqs) {
  const int s = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (s < num_seqs) prefix_lens[s] = seq_lens[s] - (cu_q[s + 1] - cu_q[s]);
}

__global__ void fp8_kernel(const void* from, int dtype, const float* scale, std::uint8_t* to, std::int64_t count) {
  const float inverse = 1.0f / *scale;
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * blockDim.x;
  for (std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += step) {
    to[i] =
        static_cast<std::uint8_t>(fp8_bits(static_cast<int>(Fp8Kind::E4M3), load_element(from, static_cast<DType>(dtype), i) * inverse));
  }
}

}  // namespace

void launch_unpack_planes(const DeviceCodec& codec, Side side, const EncodedIn& in, bool high_nibble_first, const std::int32_t* cu_k,
                          int num_seqs, std::int64_t max_tokens, std::uint16_t* out, std::int64_t capacity, cudaStream_t stream) {
  PlanesArgs a{};
  a.codec = row_codec(codec, side);
  a.in = in;
  a.cu_k = cu_k;
  a.heads = codec.num_kv_heads();
  a.row_bytes = high_nibble_first ? codec.head_dim() / 2 : a.codec.code_bytes;
  a.nibbles_high = high_nibble_first;
  a.out = out;
  a.capacity = capacity;
  const std::size_t shared = dequant_shared(a.codec, table_bytes(a.codec));
  allow_shared(planes_kernel, shared, codec.device().shared_bytes_per_block, "prefill");
  const dim3 grid(static_cast<unsigned>((max_tokens + kDequantRows - 1) / kDequantRows), static_cast<unsigned>(a.heads),
                  static_cast<unsigned>(num_seqs));
  launch_kernel("prefill (planes)", {grid, kDequantThreads, shared, stream}, planes_kernel, a);
}

void launch_append(const AppendArgs& args, cudaStream_t stream) {
  const std::int64_t elements = static_cast<std::int64_t>(args.max_q_len) * args.head_dim;
  const dim3 grid(static_cast<unsigned>(std::min<std::int64_t>((elements + 1023) / 1024, 1024)), static_cast<unsigned>(args.num_kv_heads),
                  static_cast<unsigned>(args.num_seqs));
  launch_kernel("prefill (new tokens)", {grid, 256, 0, stream}, append_kernel, args);
}

void launch_prefix_lens(const std::int32_t* seq_lens, const std::int32_t* cu_q, std::int32_t* prefix_lens, int num_seqs,
                        cudaStream_t stream) {
  if (num_seqs == 0) return;
  launch_kernel("layer step (prefix lengths)", {static_cast<unsigned>((num_seqs + 127) / 128), 128, 0, stream}, prefix_kernel, seq_lens,
                cu_q, prefix_lens, num_seqs);
}

void launch_to_fp8(const void* from, DType dtype, const float* scale, std::uint8_t* to, std::int64_t count, cudaStream_t stream) {
  if (count == 0) return;
  launch_kernel("layer step (fp8 output)", {static_cast<unsigned>(std::min<std::int64_t>((count + 255) / 256, 4096)), 256, 0, stream},
                fp8_kernel, from, static_cast<int>(dtype), scale, to, count);
}

}  // namespace tq4::gpu
