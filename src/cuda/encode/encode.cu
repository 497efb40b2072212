// encode: rows of x to planes, one launch. On the tensor cores where they serve (rotate.cuh). Else a block takes some tokens of one head: load,
// centre, turn (transform.cuh), then a warp a row quantizes and packs (row.cuh), every sum as on the CPU.
#include "cuda/encode/hadamard.cuh"
#include "cuda/encode/hopper_wide.h"
#include "cuda/encode/rotate.cuh"
#include "cuda/encode/row.cuh"
#include "cuda/launch.cuh"
#include "cuda/transform.cuh"

namespace tq4::gpu {
namespace {

constexpr int kThreads = 128, kWarps = kThreads / 32;

struct EncodeArgs {
  RowCodec codec;
  const void* x;
  int dtype;
  std::int64_t n;
  int heads;
  std::int64_t token_stride, head_stride;
  const std::int64_t* positions;
  EncodedOut out;
};

template <int R>
__global__ void __launch_bounds__(kThreads) encode_kernel(const __grid_constant__ EncodeArgs a) {
  TQ4_DYNAMIC_SHARED(float, memory);  // x [R][D], y [R][D], codes [R][2 D] bytes, tables
  const int dim = a.codec.dim, head = blockIdx.y, warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
  const std::int64_t token0 = static_cast<std::int64_t>(blockIdx.x) * R;
  float *x = memory, *y = x + R * dim;
  auto* codes = reinterpret_cast<unsigned char*>(y + R * dim);
  const RowTables tables = load_tables(a.codec, reinterpret_cast<float*>(codes + R * 2 * dim), threadIdx.x, kThreads);
  load_rows<R>(
      a.codec, a.x, static_cast<DType>(a.dtype), head,
      [&](int r) { return token0 + r < a.n ? (token0 + r) * a.token_stride + head * a.head_stride : static_cast<std::int64_t>(-1); },
      [&](int r) { return a.positions ? a.positions[token0 + r] : 0; }, x, threadIdx.x, kThreads);
  block_transform<R>(forward_transform(a.codec.t, head, dim), x, y, dim, threadIdx.x, kThreads);
  for (int r = warp; r < R; r += kWarps) {
    const std::int64_t token = token0 + r;
    if (token >= a.n) break;
    float* row = x + r * dim;
    unsigned char* row_codes = codes + r * 2 * dim;
    const RowScales s = quantize_row(a.codec, tables, y + r * dim, row, row, row_codes, lane);
    const std::int64_t at = token * a.heads + head;
    unsigned char* to = a.out.codes + at * a.codec.code_bytes;
    if (a.codec.bits == 16) {
      for (int j = lane; j < 2 * dim; j += 32) to[j] = row_codes[j];
    } else {
      for (int g = lane; g < dim / 8; g += 32) {
        const int2 place = group_place(a.codec, g);
        put_bytes(to + place.x, pack_group(row_codes + g * 8, place.y, false), place.y);
      }
    }
    if (a.codec.has_signs) sketch_signs(a.codec, row, a.out.signs + at * (dim / 8), lane);
    if (lane == 0) {
      if (a.codec.has_scale) a.out.scale[at] = s.scale;
      if (a.codec.has_zero) a.out.zero[at] = s.zero;
      if (a.codec.has_signs) a.out.residual_norm[at] = s.residual_norm;
    }
  }
}

template <int R>
void launch(const EncodeArgs& a, const DeviceInfo& device, cudaStream_t stream) {
  const std::size_t shared = static_cast<std::size_t>(R * a.codec.dim) * (4 + 4 + 2) + static_cast<std::size_t>(table_bytes(a.codec));
  allow_shared(encode_kernel<R>, shared, device.shared_bytes_per_block, "encode");
  const dim3 grid(static_cast<unsigned>((a.n + R - 1) / R), static_cast<unsigned>(a.heads));
  launch_kernel("encode", {grid, kThreads, shared, stream}, encode_kernel<R>, a);
}

/// Where rotate.cuh leaves a row's codes: planes [n, heads].
struct PlaneSink {
  static constexpr int kSides = 1;
  using Slot = std::int64_t;  ///< the row's index; < 0: none
  EncodedOut out;
  int heads;
  __device__ __forceinline__ std::int64_t fetch(const RowPlace& place) const {
    return place.token < 0 ? -1 : place.token * heads + place.head;
  }
  __device__ __forceinline__ Slot slot(std::int64_t row) const { return row; }
  template <int N>
  __device__ __forceinline__ void put(const RowCodec& codec, bool, Slot at, int, int first, const LaneCodes<N>& codes) const {
    if (at < 0) return;
    put_aligned(out.codes + at * codec.code_bytes + first / 8 * codec.bits, codes.low, codes.high, codec.bits);
    if (first != 0) return;
    if (codec.has_scale) out.scale[at] = codes.scale;
    if (codec.has_zero) out.zero[at] = codes.zero;
  }
};

/// The same, scales as turboquant-vllm has them.
struct PeerPlaneSink : PlaneSink {
  using PeerNorm = void;
};

}  // namespace

void encode(const DeviceCodec& codec, Side side, const EncodeParams& p, Stream stream) {
  constexpr const char* kWhere = "encode";
  EncodeArgs a{};
  a.codec = row_codec(codec, side);
  if (a.codec.t.feedback)
    refuse("codes of this calibration are made with feedback, which only the CPU does: encode there, or calibrate with --method transform",
           kWhere);
  require(p.n >= 0 && p.heads >= 1 && p.heads <= 65535, "n must be at least 0 and heads 1 to 65535", kWhere);
  const bool by_head = a.codec.t.per_head || a.codec.t.centre || a.codec.t.rope_mu;
  require(!by_head || p.heads == codec.num_kv_heads(), "a calibrated codec encodes exactly num_kv_heads heads", kWhere);
  require(p.x_dtype == DType::F16 || p.x_dtype == DType::BF16 || p.x_dtype == DType::F32, "x must be float16, bfloat16 or float32", kWhere);
  require(!a.codec.t.rope_mu || p.positions, "centring before RoPE needs positions", kWhere);
  if (p.n == 0) return;
  require(p.x && p.out.codes && (!a.codec.has_scale || p.out.scale) && (!a.codec.has_zero || p.out.zero) &&
              (!a.codec.has_signs || (p.out.signs && p.out.residual_norm)),
          "a plane that the codec has is a null pointer", kWhere);
  a.x = p.x;
  a.dtype = static_cast<int>(p.x_dtype);
  a.n = p.n;
  a.heads = p.heads;
  const bool dense = p.token_stride == 0 && p.head_stride == 0;
  a.token_stride = dense ? static_cast<std::int64_t>(p.heads) * codec.head_dim() : p.token_stride;
  a.head_stride = dense ? codec.head_dim() : p.head_stride;
  a.positions = p.positions;
  a.out = p.out;
  const auto cuda_stream = static_cast<cudaStream_t>(stream);
  if (!p.sequential && reinterpret_cast<std::uintptr_t>(p.out.codes) % 16 == 0 &&
      rotate_serves(a.codec, p.x, p.x_dtype, p.n, p.heads, a.token_stride, a.head_stride)) {
    const WideRowsArgs wide{a.codec, p.x, p.n * p.heads, p.out};
    if (p.x_dtype == DType::F16 && !p.single_fp16_rotation && a.head_stride == codec.head_dim() &&
        a.token_stride == p.heads * a.head_stride && wide_rows_serve(wide, codec.device()))
      return launch_wide_rows(kWhere, wide, codec.device(), cuda_stream);
    const auto turn = [&]<class Sink>(RotateArgs<Sink> r) {
      r.side[0] = {a.codec, p.x, a.token_stride, a.head_stride, p.single_fp16_rotation ? 1 : a.codec.t.image_parts};
      r.dtype = a.dtype;
      r.n = p.n;
      r.heads = p.heads;
      r.by_head = a.codec.t.per_head;
      number_rows(r, !a.codec.t.centre && a.head_stride == codec.head_dim() && a.token_stride == p.heads * a.head_stride);
      r.side[0].token_stride = r.heads == 1 && p.heads > 1 ? a.head_stride : a.token_stride;
      r.sink.out = p.out;
      r.sink.heads = r.heads;
      if constexpr (!kPeerNorm<Sink>) {
        if (hadamard_serves(r, 1, codec.device())) return launch_hadamard(kWhere, r, 1, codec.device(), cuda_stream);
      }
      launch_rotate(kWhere, r, 1, codec.device(), cuda_stream);
    };
    return a.codec.peer_norm ? turn(RotateArgs<PeerPlaneSink>{}) : turn(RotateArgs<PlaneSink>{});
  }
  if (p.n * p.heads >= 16 * 4 * codec.device().sm_count) {
    launch<16>(a, codec.device(), cuda_stream);
  } else {
    launch<4>(a, codec.device(), cuda_stream);
  }
}

}  // namespace tq4::gpu
