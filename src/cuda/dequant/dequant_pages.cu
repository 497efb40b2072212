// dequant_pages: the tokens of a batch from a paged cache, through the block table, to dense K and V [sequence, head, position, D], for engines
// that keep their own attention: only pages a sequence uses are read; rows from its length on are not written.
#include "cuda/dequant/dequant_pages.h"

#include "cuda/dequant/dequant.cuh"
#include "cuda/dequant/direct_pages.cuh"
#include "cuda/dequant/hadamard.cuh"
#include "cuda/launch.cuh"

namespace tq4::gpu {
namespace {

struct PagesArgs {
  RowCodec k, v;
  CacheView cache;
  int nibbles_high, rotated, dtype;
  const std::int32_t* block_table;
  std::int64_t block_table_stride;
  const std::int32_t* seq_lens;
  std::int64_t max_seq_len;
  void *k_out, *v_out;
};

__global__ void __launch_bounds__(kDequantThreads) pages_kernel(const __grid_constant__ PagesArgs a) {
  TQ4_DYNAMIC_SHARED(float, memory);
  const bool key = blockIdx.z == 0;
  const RowCodec& codec = key ? a.k : a.v;
  const PartView& part = key ? a.cache.k : a.cache.v;
  const int dim = codec.dim, warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
  const int sequence = blockIdx.y / a.cache.num_kv_heads, head = blockIdx.y % a.cache.num_kv_heads;
  const int length = static_cast<int>(min(static_cast<std::int64_t>(a.seq_lens[sequence]), a.max_seq_len));
  const int token0 = blockIdx.x * kDequantRows;
  if (token0 >= length) return;
  float *y = memory, *x = y + kDequantRows * dim;
  auto* codes = reinterpret_cast<unsigned char*>(x + kDequantRows * dim);
  const RowTables tables =
      load_tables(codec, reinterpret_cast<float*>(codes + kDequantThreads / 32 * 2 * dim), threadIdx.x, kDequantThreads);
  __syncthreads();
  for (int r = warp; r < kDequantRows; r += kDequantThreads / 32) {
    const int token = token0 + r;
    float* row = y + r * dim;
    if (token >= length) {
      for (int j = lane; j < dim; j += 32) row[j] = 0.0f;
      continue;
    }
    const int block = token / a.cache.block_size;
    const TokenRef ref =
        token_ref(a.cache, a.block_table[sequence * a.block_table_stride + block], token - block * a.cache.block_size, head);
    RowIn in{1.0f, 0.0f, 0.0f, nullptr, a.cache.native && !key, a.nibbles_high != 0, in_units(a.cache, key)};
    if (in.split_groups && codec.outliers == 0 && a.cache.v_piece % codec.bits == 0) in.split_groups = false;
    if (codec.has_scale) in.scale = load_scale(part, scale_ptr(a.cache, part, ref, head));
    if (codec.has_zero) in.zero = __half2float(*reinterpret_cast<const __half*>(zero_ptr(a.cache, part, ref, head)));
    decode_row(
        codec, tables, in,
        [&](int i) {
          if (in.units) return ref.base + part.codes + unit_byte(dim, key, ref.t, i / 3);
          return code_byte(a.cache, part, key, codec.code_bytes, ref, head, i);
        },
        codes + warp * 2 * dim, row, lane);
  }
  __syncthreads();
  const float* result = y;
  if (!a.rotated) {
    block_transform<kDequantRows>(inverse_transform(codec.t, head, dim), y, x, dim, threadIdx.x, kDequantThreads);
    if (codec.t.centre || codec.t.rope_mu) {
      for (int i = threadIdx.x; i < kDequantRows * dim; i += kDequantThreads) {
        if (token0 + i / dim < length) x[i] = __fadd_rn(x[i], centre_at(codec, head, token0 + i / dim, i % dim));
      }
      __syncthreads();
    }
    result = x;
  }
  const std::int64_t first = (static_cast<std::int64_t>(sequence) * a.cache.num_kv_heads + head) * a.max_seq_len;
  write_rows(result, dim, key ? a.k_out : a.v_out, static_cast<DType>(a.dtype),
             [&](int r) { return token0 + r < length ? (first + token0 + r) * dim : static_cast<std::int64_t>(-1); });
}

/// tiled: false where that is not served.
bool pages(const DeviceCodec& codec, const DequantPagesParams& p, bool tiled, Stream stream) {
  constexpr const char* kWhere = "dequant_pages";
  PagesArgs a{};
  a.cache = cache_view(codec, p.cache, kWhere);
  a.k = row_codec(codec, Side::K);
  a.v = row_codec(codec, Side::V);
  if (a.k.has_signs || a.v.has_signs) refuse("pages have no place for the residual signs of Prod codecs", kWhere);
  require(p.out_dtype == DType::F16 || p.out_dtype == DType::BF16 || p.out_dtype == DType::F32, "out must be float16, bfloat16 or float32",
          kWhere);
  require(p.num_seqs >= 0 && p.max_seq_len >= 0, "num_seqs and max_seq_len are not negative", kWhere);
  if (static_cast<std::int64_t>(p.num_seqs) * codec.num_kv_heads() > 65535) refuse("at most 65535 sequences times kv heads a call", kWhere);
  if (p.num_seqs == 0 || p.max_seq_len == 0) return true;
  require(p.k_out && p.v_out && p.block_table && p.seq_lens, "k_out, v_out, block_table and seq_lens must be given", kWhere);
  a.nibbles_high = p.cache.layout.kind == LayoutKind::TurboquantVllm;
  a.rotated = p.rotated;
  a.dtype = static_cast<int>(p.out_dtype);
  a.block_table = p.block_table;
  a.block_table_stride = p.block_table_stride;
  a.seq_lens = p.seq_lens;
  a.max_seq_len = p.max_seq_len;
  a.k_out = p.k_out;
  a.v_out = p.v_out;
  const auto direct = [&](const RowCodec& r, const void* out) { return !tiled && direct_serves(r, a.cache, p.rotated, out); };
  const auto turned = [&](const RowCodec& r, const void* out) { return !p.rotated && inverse_serves(r, out, p.out_dtype, codec.device()); };
  const bool k_direct = direct(a.k, p.k_out), v_direct = direct(a.v, p.v_out);
  if (!p.sequential && p.max_seq_len < (std::int64_t{1} << 31) && (k_direct || turned(a.k, p.k_out)) &&
      (v_direct || turned(a.v, p.v_out))) {
    PageRows rows{};
    const auto side_of = [&](const RowCodec& r, bool key, bool unturned, void* out) {
      const InverseSide inverse{r, a.nibbles_high ? 4 : r.bits, a.nibbles_high, unturned ? 1 : inverse_parts(r, p.out_dtype)};
      return page_side(a.cache, key, inverse, unturned, out);
    };
    rows.sides[0] = side_of(a.k, true, k_direct, p.k_out);
    rows.sides[1] = side_of(a.v, false, v_direct, p.v_out);
    rows.data = a.cache.data;
    rows.block_stride = a.cache.block_stride;
    number_blocks(rows, a.cache.block_size);
    rows.num_kv_heads = codec.num_kv_heads();
    rows.head_dim = codec.head_dim();
    rows.dtype = a.dtype;
    rows.block_table = p.block_table;
    rows.block_table_stride = p.block_table_stride;
    rows.seq_lens = p.seq_lens;
    rows.max_seq_len = p.max_seq_len;
    rows.tiled = tiled;
    const auto cuda_stream = static_cast<cudaStream_t>(stream);
    const auto heads = static_cast<unsigned>(codec.num_kv_heads());
    const auto launch = [&](int first_side, int sides, bool unturned) {
      rows.first_side = first_side;
      rows.two_sides = sides - 1;
      const auto lines = static_cast<unsigned>(p.num_seqs * sides);
      bool hadamard = !tiled;
      for (int s = first_side; s < first_side + sides; ++s)
        hadamard = hadamard && hadamard_back_serves(rows.sides[s].inverse.codec, p.out_dtype);
      if (unturned) {
        launch_direct(kWhere, rows, p.max_seq_len, heads, lines, a.k.dim, codec.device(), cuda_stream);
      } else if (hadamard) {
        launch_hadamard_back(kWhere, rows, p.max_seq_len, heads, lines, a.k.dim, codec.device(), cuda_stream);
      } else {
        launch_inverse(kWhere, rows, p.max_seq_len, heads, lines, a.k.dim, codec.device(), cuda_stream);
      }
    };
    if (k_direct == v_direct) {
      launch(0, 2, k_direct);
    } else {
      launch(0, 1, k_direct);
      launch(1, 1, v_direct);
    }
    return true;
  }
  if (tiled) return false;
  const std::size_t shared = dequant_shared(a.k, std::max(table_bytes(a.k), table_bytes(a.v)));
  allow_shared(pages_kernel, shared, codec.device().shared_bytes_per_block, kWhere);
  const dim3 grid(static_cast<unsigned>((p.max_seq_len + kDequantRows - 1) / kDequantRows),
                  static_cast<unsigned>(p.num_seqs * codec.num_kv_heads()), 2);
  launch_kernel(kWhere, {grid, kDequantThreads, shared, static_cast<cudaStream_t>(stream)}, pages_kernel, a);
  return true;
}

}  // namespace

void dequant_pages(const DeviceCodec& codec, const DequantPagesParams& p, Stream stream) { pages(codec, p, false, stream); }
bool dequant_pages_to_tiles(const DeviceCodec& codec, const DequantPagesParams& p, Stream stream) { return pages(codec, p, true, stream); }

}  // namespace tq4::gpu
