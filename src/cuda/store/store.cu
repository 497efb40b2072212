// store: K and V of new tokens encoded and scattered to pages by slot_mapping, one launch. Kernels are those of encode, with one side more in
// the grid; only the place of the bytes differs (views.cuh, sinks.cuh).
#include "cuda/encode/hadamard.cuh"
#include "cuda/encode/rotate.cuh"
#include "cuda/encode/row.cuh"
#include "cuda/launch.cuh"
#include "cuda/store/sinks.cuh"
#include "cuda/transform.cuh"

namespace tq4::gpu {
namespace {

constexpr int kThreads = 128, kWarps = kThreads / 32;

struct StoreSide {
  RowCodec codec;
  const void* x;
  std::int64_t token_stride, head_stride;
};
struct StoreArgs {
  StoreSide k, v;
  CacheView cache;
  int dtype, nibbles_high;
  std::int64_t n;
  const std::int64_t* slot_mapping;
  const std::int64_t* positions;
};

template <int R>
__global__ void __launch_bounds__(kThreads) store_kernel(const __grid_constant__ StoreArgs a) {
  TQ4_DYNAMIC_SHARED(float, memory);  // as in encode.cu
  const bool key = blockIdx.z == 0;
  const StoreSide& side = key ? a.k : a.v;
  const RowCodec& codec = side.codec;
  const PartView& part = key ? a.cache.k : a.cache.v;
  const int dim = codec.dim, head = blockIdx.y, warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
  const std::int64_t token0 = static_cast<std::int64_t>(blockIdx.x) * R;
  float *x = memory, *y = x + R * dim;
  auto* codes = reinterpret_cast<unsigned char*>(y + R * dim);
  const RowTables tables = load_tables(codec, reinterpret_cast<float*>(codes + R * 2 * dim), threadIdx.x, kThreads);
  load_rows<R>(
      codec, side.x, static_cast<DType>(a.dtype), head,
      [&](int r) { return token0 + r < a.n ? (token0 + r) * side.token_stride + head * side.head_stride : static_cast<std::int64_t>(-1); },
      [&](int r) { return a.positions ? a.positions[token0 + r] : 0; }, x, threadIdx.x, kThreads);
  block_transform<R>(forward_transform(codec.t, head, dim), x, y, dim, threadIdx.x, kThreads);
  for (int r = warp; r < R; r += kWarps) {
    const std::int64_t token = token0 + r;
    if (token >= a.n) break;
    const SlotPlace slot = slot_place(a.cache, a.slot_mapping[token]);
    if (slot.page < 0) continue;
    float* row = x + r * dim;
    unsigned char* row_codes = codes + r * 2 * dim;
    const RowScales s = quantize_row(codec, tables, y + r * dim, row, row, row_codes, lane);
    const TokenRef ref = token_ref(a.cache, slot.page, slot.offset, head);
    const auto address = [&](int byte) { return code_byte(a.cache, part, key, codec.code_bytes, ref, head, byte); };
    const bool pieces = a.cache.native && !key;
    if (codec.bits == 16) {
      for (int j = lane; j < 2 * dim; j += 32) *address(j) = row_codes[j];
    } else {
      for (int g = lane; g < dim / 8; g += 32) {
        int2 place = group_place(codec, g);
        if (a.nibbles_high) place = make_int2(4 * g, 4);
        const unsigned long long bits = pack_group(row_codes + g * 8, place.y, a.nibbles_high);
        if (in_units(a.cache, key)) {
          put_unit_group(ref.base + part.codes + unit_byte(dim, key, ref.t, g), static_cast<std::uint32_t>(bits));
        } else if (pieces && a.cache.v_piece % place.y != 0) {  // a group may lie in two pieces
          for (int b = 0; b < place.y; ++b) *address(place.x + b) = static_cast<unsigned char>(bits >> (8 * b));
        } else {
          put_bytes(address(place.x), bits, place.y);
        }
      }
    }
    if (lane == 0) put_scales(a.cache, part, codec, ref, head, s.scale, s.zero);
  }
}

template <int R>
void launch(const StoreArgs& a, const DeviceInfo& device, cudaStream_t stream) {
  const int tables = max(table_bytes(a.k.codec), table_bytes(a.v.codec));
  const std::size_t shared = static_cast<std::size_t>(R * a.k.codec.dim) * (4 + 4 + 2) + static_cast<std::size_t>(tables);
  allow_shared(store_kernel<R>, shared, device.shared_bytes_per_block, "store");
  const dim3 grid(static_cast<unsigned>((a.n + R - 1) / R), static_cast<unsigned>(a.cache.num_kv_heads), 2);
  launch_kernel("store", {grid, kThreads, shared, stream}, store_kernel<R>, a);
}

}  // namespace

void store(const DeviceCodec& codec, const StoreParams& p, Stream stream) {
  constexpr const char* kWhere = "store";
  StoreArgs a{};
  a.cache = cache_view(codec, p.cache, kWhere);
  a.k.codec = row_codec(codec, Side::K);
  a.v.codec = row_codec(codec, Side::V);
  if (a.k.codec.has_signs || a.v.codec.has_signs) refuse("pages have no place for the residual signs of Prod codecs", kWhere);
  if (a.k.codec.t.feedback || a.v.codec.t.feedback)
    refuse("codes of this calibration are made with feedback, which only the CPU does: encode there, or calibrate with --method transform",
           kWhere);
  require(p.dtype == DType::F16 || p.dtype == DType::BF16 || p.dtype == DType::F32, "k and v must be float16, bfloat16 or float32", kWhere);
  require(p.n >= 0, "n is negative", kWhere);
  require(!a.k.codec.t.rope_mu || p.positions, "centring before RoPE needs positions", kWhere);
  if (p.n == 0) return;
  require(p.k && p.v && p.slot_mapping, "k, v and slot_mapping must be given", kWhere);
  const std::int64_t dim = codec.head_dim(), heads = codec.num_kv_heads();
  const auto strides = [&](StoreSide& side, const void* x, std::int64_t token, std::int64_t head) {
    const bool dense = token == 0 && head == 0;
    side.x = x;
    side.token_stride = dense ? heads * dim : token;
    side.head_stride = dense ? dim : head;
  };
  strides(a.k, p.k, p.k_token_stride, p.k_head_stride);
  strides(a.v, p.v, p.v_token_stride, p.v_head_stride);
  a.dtype = static_cast<int>(p.dtype);
  a.nibbles_high = p.cache.layout.kind == LayoutKind::TurboquantVllm;
  a.n = p.n;
  a.slot_mapping = p.slot_mapping;
  a.positions = p.positions;
  const auto cuda_stream = static_cast<cudaStream_t>(stream);
  const auto served = [&](const StoreSide& side) {
    return rotate_serves(side.codec, side.x, p.dtype, p.n, static_cast<int>(heads), side.token_stride, side.head_stride);
  };
  const auto turn = [&]<class Sink>(RotateArgs<Sink> r) {
    r.side[0] = {a.k.codec, p.k, a.k.token_stride, a.k.head_stride, a.k.codec.t.image_parts};
    r.side[1] = {a.v.codec, p.v, a.v.token_stride, a.v.head_stride, a.v.codec.t.image_parts};
    r.sink.cache = a.cache;
    r.sink.slot_mapping = p.slot_mapping;
    r.dtype = a.dtype;
    r.n = p.n;
    r.heads = static_cast<int>(heads);
    r.by_head = a.k.codec.t.per_head;
    number_rows(r, false);
    // Where neighbours in a page are tokens of one head, a warp's rows should be.
    if (a.cache.native || a.cache.token_stride < a.cache.k.codes_head) r.blocked_rows = static_cast<unsigned>(p.n / 16 * 16 * heads);
    if constexpr (kPeerNorm<Sink>) {
      r.side[0].codec.bits = r.side[1].codec.bits = 4;  // as the page has them
    } else if (hadamard_serves(r, 2, codec.device())) {
      return launch_hadamard(kWhere, r, 2, codec.device(), cuda_stream);
    }
    launch_rotate(kWhere, r, 2, codec.device(), cuda_stream);
  };
  if (!p.sequential && served(a.k) && served(a.v) && a.k.codec.t.per_head == a.v.codec.t.per_head) {
    const int peers = a.k.codec.peer_norm + a.v.codec.peer_norm;
    if (peers == 0 && a.cache.native) return turn(RotateArgs<NativeSink>{});
    if (peers == 0 && !a.nibbles_high) return turn(RotateArgs<SlotSink>{});
    if (peers == 2 && a.nibbles_high) return turn(RotateArgs<NibbleSink>{});
  }
  if (2 * p.n * heads >= 16 * 4 * codec.device().sm_count) {
    launch<16>(a, codec.device(), cuda_stream);
  } else {
    launch<4>(a, codec.device(), cuda_stream);
  }
}

}  // namespace tq4::gpu
