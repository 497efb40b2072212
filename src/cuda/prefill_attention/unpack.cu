// The first half of prefill: compressed planes to fp16 in original space, new tokens behind them; and the fp8 output of a layer step. Scalar codes
// become rows on the tensor cores (dequant/tiles.cuh), at once in the order of tiles that the Hopper kernel reads; the rest as the CPU does.
#include "cuda/dequant/dequant.cuh"
#include "cuda/dequant/tiles.cuh"
#include "cuda/launch.cuh"
#include "cuda/prefill_attention/tile_order.cuh"

namespace tq4::gpu {
namespace {

struct PlanesArgs {
  RowCodec codec;
  EncodedIn in;
  const std::int32_t* cu_k;
  int heads, row_bytes, nibbles_high;
  std::uint16_t* out;
  std::int64_t capacity;
  std::uint32_t* next_work;
};

/// By one thread of the launch.
__device__ __forceinline__ void begin_work(std::uint32_t* next_work) {
  if (next_work && blockIdx.x == 0 && blockIdx.y == 0 && blockIdx.z == 0 && threadIdx.x == 0) *next_work = 0;
}

__global__ void __launch_bounds__(kDequantThreads) planes_kernel(const __grid_constant__ PlanesArgs a) {
  TQ4_DYNAMIC_SHARED(float, memory);
  begin_work(a.next_work);
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

/// Tokens of one sequence and head (blockIdx.y) and side (blockIdx.z) for inverse_tiles.
struct PlaneTokens {
  using NarrowRows = void;
  InverseSide sides[2];
  EncodedIn in[2];
  int row_bytes[2];
  void* to[2];
  int first_side, heads, dtype, tiled;
  const std::int32_t* cu_k;
  std::int64_t capacity;
  std::uint32_t* next_work;
  unsigned zero = 0;
  __device__ __forceinline__ void begin() const { begin_work(next_work); }
  __device__ __forceinline__ int which() const { return first_side + static_cast<int>(blockIdx.z); }
  __device__ __forceinline__ const InverseSide& side() const { return sides[which()]; }
  __device__ __forceinline__ void* out() const { return to[which()]; }
  __device__ __forceinline__ int sequence() const { return static_cast<int>(blockIdx.y) / heads; }
  __device__ __forceinline__ int image_head() const { return static_cast<int>(blockIdx.y) % heads; }
  __device__ __forceinline__ unsigned tokens() const {
    return static_cast<unsigned>(min(static_cast<std::int64_t>(cu_k[sequence() + 1] - cu_k[sequence()]), capacity));
  }
  __device__ __forceinline__ unsigned count() const { return tiled ? (tokens() + kTileKeys - 1) / kTileKeys * kTileKeys : tokens(); }
  /// Rows past the end of the last tile are some finite numbers.
  __device__ __forceinline__ InverseRow row(unsigned i) const {
    const unsigned last = tokens() - 1;
    const int s = which(), dim = sides[0].codec.dim;
    const std::int64_t at = (static_cast<std::int64_t>(cu_k[sequence()]) + min(i, last)) * heads + image_head();
    const std::int64_t place = tiled ? tile_row(i, dim) : static_cast<std::int64_t>(i) * dim;
    return {in[s].codes + at * row_bytes[s], 0, image_head(), i <= last ? __ldcs(in[s].scale + at) : 0.0f,
            static_cast<std::int64_t>(blockIdx.y) * capacity * dim + place};
  }
  template <int G>
  __device__ __forceinline__ void fetch(unsigned (&raw)[G], const InverseRow& row, int t) const {
    fetch_groups(raw, row.codes + G * side().row_bits * t, side().row_bits);
  }
  template <int G>
  __device__ __forceinline__ void spread(unsigned (&w)[G], const unsigned (&raw)[G]) const {
    spread_groups(w, raw, side().row_bits);
  }
  __device__ __forceinline__ std::int64_t chunk(std::int64_t out, int c) const { return tiled ? tile_chunk(out, c) : out + 8 * c; }
};

__global__ void append_kernel(const __grid_constant__ AppendArgs a) {
  begin_work(a.next_work);
  const int sequence = blockIdx.z, head = blockIdx.y;
  const int begin = a.cu_q[sequence], length = a.cu_q[sequence + 1] - begin, prefix = a.prefix_lens ? a.prefix_lens[sequence] : 0;
  // Tiles: zeros from the last token to the end of the tile it is in.
  const int rows = length == 0 ? 0 : a.tiled ? (prefix + length + kTileKeys - 1) / kTileKeys * kTileKeys - prefix : length;
  const int elements = rows * a.head_dim, step = static_cast<int>(gridDim.x * blockDim.x);
  const std::int64_t to = (static_cast<std::int64_t>(sequence) * a.num_kv_heads + head) * a.capacity * a.head_dim;
  for (int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x); i < elements; i += step) {
    const int token = i / a.head_dim, d = i - token * a.head_dim;
    float k = 0.0f, v = 0.0f;
    if (token < length) {
      k = load_element(a.k, static_cast<DType>(a.dtype), (begin + token) * a.k_token_stride + head * a.k_head_stride + d);
      v = load_element(a.v, static_cast<DType>(a.dtype), (begin + token) * a.v_token_stride + head * a.v_head_stride + d);
    }
    const auto row = static_cast<unsigned>(prefix + token);
    const std::int64_t at =
        a.tiled ? tile_chunk(to + tile_row(row, a.head_dim), d / 8) + d % 8 : to + static_cast<std::int64_t>(row) * a.head_dim + d;
    reinterpret_cast<__half*>(a.k_out)[at] = __float2half_rn(k);
    reinterpret_cast<__half*>(a.v_out)[at] = __float2half_rn(v);
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

void launch_unpack_planes(const DeviceCodec& codec, const EncodedIn (&in)[2], bool high_nibble_first, const FlashArgs& flash,
                          std::int64_t max_tokens, std::uint16_t* const (&out)[2], bool tiled, bool (&became_tiles)[2],
                          cudaStream_t stream) {
  PlaneTokens rows{};
  rows.heads = codec.num_kv_heads();
  rows.dtype = static_cast<int>(DType::F16);
  rows.tiled = tiled;
  rows.cu_k = flash.cu_k;
  rows.capacity = flash.capacity;
  rows.next_work = flash.next_work;
  bool served[2];
  for (int s = 0; s < 2; ++s) {
    const RowCodec row = row_codec(codec, static_cast<Side>(s));
    rows.sides[s] = {row, high_nibble_first ? 4 : row.bits, high_nibble_first, inverse_parts(row, DType::F16)};
    rows.in[s] = in[s];
    rows.row_bytes[s] = high_nibble_first ? row.dim / 2 : row.code_bytes;
    rows.to[s] = out[s];
    served[s] = inverse_serves(row, out[s], DType::F16, codec.device()) && reinterpret_cast<std::uintptr_t>(in[s].codes) % 16 == 0 &&
                static_cast<std::int64_t>(flash.num_seqs) * rows.heads <= 65535;
    became_tiles[s] = tiled && served[s];
  }
  const auto heads = static_cast<unsigned>(rows.heads), sequences = static_cast<unsigned>(flash.num_seqs);
  if (served[0] || served[1]) {
    rows.first_side = served[0] ? 0 : 1;
    launch_inverse("prefill (planes)", rows, max_tokens, heads * sequences, served[0] && served[1] ? 2 : 1, codec.head_dim(),
                   codec.device(), stream);
  }
  for (int s = 0; s < 2; ++s) {
    if (served[s]) continue;
    const PlanesArgs a{rows.sides[s].codec, in[s],  flash.cu_k,     rows.heads,     rows.row_bytes[s],
                       high_nibble_first,   out[s], flash.capacity, flash.next_work};
    const std::size_t shared = dequant_shared(a.codec, table_bytes(a.codec));
    allow_shared(planes_kernel, shared, codec.device().shared_bytes_per_block, "prefill");
    const dim3 grid(static_cast<unsigned>((max_tokens + kDequantRows - 1) / kDequantRows), heads, sequences);
    launch_kernel("prefill (planes)", {grid, kDequantThreads, shared, stream}, planes_kernel, a);
  }
}

void launch_append(const AppendArgs& args, cudaStream_t stream) {
  const std::int64_t elements = static_cast<std::int64_t>(args.max_q_len + (args.tiled ? kTileKeys - 1 : 0)) * args.head_dim;
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
