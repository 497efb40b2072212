// encode and store of many rows turned by a Hadamard matrix, without the matrix: rows go from global memory to the tensor cores' fragments and to
// codes in registers (tiles/hadamard.cuh, code_table.cuh), a warp has 8 rows, warps share a table only. fp32 is three bf16 parts. Plain rows of planes
// have a kernel of their own (hadamard_planes.cuh).
#pragma once

#include <type_traits>

#include "cuda/encode/hadamard_planes.cuh"
#include "cuda/encode/rotate.cuh"
#include "cuda/tiles/hadamard.cuh"

namespace tq4::gpu {

/// x = a + b + c, each a pair of bf16.
struct Bf16Parts {
  unsigned part[3];
};
__device__ __forceinline__ Bf16Parts split_bf16(float x, float y) {
  Bf16Parts out;
#pragma unroll
  for (unsigned& p : out.part) {
    p = bf16x2_bits(x, y);
    x = __fsub_rn(x, __uint_as_float(p << 16)), y = __fsub_rn(y, __uint_as_float(p & 0xffff0000u));
  }
  return out;
}

/// A block's threads, and blocks a multiprocessor: registers that code without waiting count more than warps.
template <int D, bool Wide>
constexpr int kHadamardThreads = D == 256 ? (Wide ? 256 : 384) : 512;
template <int D, bool Wide>
constexpr int kHadamardBlocks = D == 64 && !Wide ? 2 : 1;
constexpr std::size_t kHadamardShared = kCodeTableBytes + 1024;  ///< and fragments

/// What a kernel knows of its rows when it is compiled: 16 bits, 32 bits, or is_plain() for every side.
enum class HadamardRows { Any16, F32, Plain };

template <int D, HadamardRows Rows, class Sink>
__global__ void __launch_bounds__(kHadamardThreads<D, Rows == HadamardRows::F32>, kHadamardBlocks<D, Rows == HadamardRows::F32>)
    hadamard_tiles(const __grid_constant__ RotateArgs<Sink> a) {
  constexpr bool Wide = Rows == HadamardRows::F32, kPlain = Rows == HadamardRows::Plain;
  constexpr int kChunks = kLaneChunks<D>, kWords = Wide ? 2 : 1, kThreads = kHadamardThreads<D, Wide>, kWarps = kThreads / 32;
  TQ4_DYNAMIC_SHARED(float, memory);
  __shared__ uint4 signs[D / 8];  // of a chunk's words
  const bool key = blockIdx.z == 0;
  const RotateSide& side = a.side[Sink::kSides == 1 ? 0 : blockIdx.z];
  const SideTables& tables = side.codec.t;
  const int thread = static_cast<int>(threadIdx.x), lane = thread & 31, g = lane >> 2, t = lane & 3;
  const RowCodec codec = kPlain ? plain_codec(side.codec, D) : side.codec;
  if (!kPlain && tables.identity) {
    wait_for_previous_kernels();
    launch_dependents();
    unrotated_rows<D, kThreads>(a, side, key, blockIdx.x, gridDim.x);
    return;
  }
  const bool bf16 = !kPlain && (Wide || static_cast<DType>(a.dtype) == DType::BF16),
             has_signs = !kPlain && tables.hadamard_signs != nullptr;
  const CodeTableParts parts = code_table_parts<kWarps>(tables, thread >> 5, lane);
  HadamardFragments fragments = hadamard_fragments(bf16, lane);
  keep_fragments(fragments, kept_fragments(memory), thread);
  if (has_signs) {
#pragma unroll 1
    for (int i = thread; i < D / 2; i += kThreads)
      reinterpret_cast<unsigned*>(signs)[i] = (__float_as_uint(tables.hadamard_signs[2 * i]) & 0x80000000u) >> 16 |
                                              (__float_as_uint(tables.hadamard_signs[2 * i + 1]) & 0x80000000u);
  }
  wait_for_previous_kernels();
  launch_dependents();  // not earlier: see DecodeParams::fresh_tokens

  const unsigned rows = row_count(a), step = gridDim.x * kWarps * kHadamardRows;
  unsigned first = (static_cast<unsigned>(thread) / 32 * gridDim.x + blockIdx.x) * kHadamardRows;
  RowPlace place{-1, 0};
  uint4 raw[kChunks][kWords];
  const auto fetch = [&] {
    const unsigned row = first + static_cast<unsigned>(g);
    place = row < rows ? row_place<kPlain>(a, row) : RowPlace{-1, 0};
    const std::int64_t at = row < rows ? row_offset<D, kPlain>(a, side, place) : 0;
    const auto* x = reinterpret_cast<const uint4*>(static_cast<const std::uint16_t*>(side.x) + kWords * (at + pair_chunk(t, 0)));
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
#pragma unroll
      for (int k = 0; k < kWords; ++k)
        raw[c][k] = __ldcs(x + kWords * pair_chunk(0, c) / 8 + k);  // rows that are not there read others and are not stored
    }
  };
  if (first < rows) fetch();
  const CodeTable table = code_table<kWarps>(memory, parts, thread >> 5, lane);
  __syncthreads();
  take_fragments(fragments, kept_fragments(memory), lane);
  while (first < rows) {
    HadamardSums<D> y{};
    if constexpr (Wide) {
#pragma unroll
      for (int c = 0; c < kChunks; ++c) {
        const unsigned v[8] = {raw[c][0].x, raw[c][0].y, raw[c][0].z, raw[c][0].w, raw[c][1].x, raw[c][1].y, raw[c][1].z, raw[c][1].w};
        const uint4 s = has_signs ? signs[pair_chunk(t, c) / 8] : make_uint4(0, 0, 0, 0);
        const unsigned sign[4] = {s.x, s.y, s.z, s.w};
        unsigned part[3][4];
#pragma unroll
        for (int w = 0; w < 4; ++w) {
          const Bf16Parts p = split_bf16(__uint_as_float(v[2 * w]), __uint_as_float(v[2 * w + 1]));
#pragma unroll
          for (int k = 0; k < 3; ++k) part[k][w] = p.part[k] ^ sign[w];
        }
#pragma unroll
        for (int k = 2; k >= 0; --k) add_chunk<D, true>(y, c, part[k], fragments);
      }
    } else {
      if (has_signs) {
#pragma unroll
        for (int c = 0; c < kChunks; ++c) {
          const uint4 s = signs[pair_chunk(t, c) / 8];
          raw[c][0].x ^= s.x, raw[c][0].y ^= s.y, raw[c][0].z ^= s.z, raw[c][0].w ^= s.w;
        }
      }
      const auto add = [&](auto is_bf16) {
#pragma unroll
        for (int c = 0; c < kChunks; ++c) {
          const unsigned word[4] = {raw[c][0].x, raw[c][0].y, raw[c][0].z, raw[c][0].w};
          add_chunk<D, decltype(is_bf16)::value>(y, c, word, fragments);
        }
      };
      bf16 ? add(std::true_type{}) : add(std::false_type{});
    }
    const auto fetched = slot_of<kPlain>(a, place);
    const int head = place.head;
    first += step;
    if (first < rows) fetch();  // what comes next arrives while these rows are coded
    finish_sums(y);
    const auto sum = [&](int i) { return y.v[i / 8][i / 4 % 2][i % 4]; };
    const auto codes = codec.kind == static_cast<int>(CodeKind::Fp8)
                           ? fp8_lanes<D / 4>(sum, tables.image_scale)
                           : table_codes<D / 4, 4>(codec, table, sum, square_of<D / 4, 4>(sum), tables.image_scale);
    const auto slot = a.sink.slot(fetched);
#pragma unroll
    for (int p = 0; p < kChunks / 2; ++p) {
      const LaneCodes<16> two{
          {codes.low[2 * p], codes.low[2 * p + 1]}, {codes.high[2 * p], codes.high[2 * p + 1]}, codes.scale, codes.zero};
      a.sink.template put<16>(codec, key, slot, head, pair_chunk(t, 2 * p), two);
    }
  }
}

/// Whether these rows go there. Those of fp32 for planes only: what is stored is seldom wider than 16 bits, and the kernels of rotate.cuh do it.
template <class Sink>
bool hadamard_serves(const RotateArgs<Sink>& a, int sides, const DeviceInfo& device) {
  for (int s = 0; s < sides; ++s) {
    const SideTables& t = a.side[s].codec.t;
    if (!(t.hadamard || t.identity) || t.centre || !table_serves(a.side[s].codec)) return false;
    if (Sink::kSides == 2 && !t.identity && static_cast<DType>(a.dtype) == DType::F32) return false;
  }
  return sides * a.n * a.heads >= static_cast<std::int64_t>(kTileRows) * device.sm_count;
}

template <int D, class Sink>
void launch_hadamard_dim(const char* what, const RotateArgs<Sink>& a, int sides, const DeviceInfo& device, cudaStream_t stream) {
  const std::int64_t rows = a.n * a.heads, tiles = (rows + kHadamardRows - 1) / kHadamardRows;
  const auto launch = [&](auto* kernel, unsigned threads, int blocks, std::size_t shared = kHadamardShared) {
    const std::int64_t most = std::max(1, device.sm_count * blocks / sides), warps = threads / 32;
    const dim3 grid(static_cast<unsigned>(std::clamp<std::int64_t>((tiles + warps - 1) / warps, 1, most)), 1u,
                    static_cast<unsigned>(sides));
    allow_shared(kernel, shared, device.shared_bytes_per_block, what);
    launch_kernel_early_if(launches_early(device), what, {grid, threads, shared, stream}, kernel, a);
  };
  constexpr bool kPlanes = Sink::kSides == 1 && kPlaneStages < D >> 0;
  bool plain = true, unrotated = true;
  for (int s = 0; s < sides; ++s) {
    plain = plain && is_plain(a, a.side[s]);
    unrotated = unrotated && a.side[s].codec.t.identity;
  }
  if (unrotated) {
    const dim3 grid(static_cast<unsigned>(std::clamp<std::int64_t>(tiles, 1, std::max(1, 4 * device.sm_count / sides))), 1u,
                    static_cast<unsigned>(sides));
    launch_kernel_early_if(launches_early(device), what, {grid, kUnrotatedThreads, 0, stream}, unrotated_kernel<D, RotateArgs<Sink>>, a);
  } else if (static_cast<DType>(a.dtype) == DType::F32) {
    if constexpr (Sink::kSides == 1)
      launch(hadamard_tiles<D, HadamardRows::F32, Sink>, kHadamardThreads<D, true>, kHadamardBlocks<D, true>);
  } else if (kPlanes && plain && kPlanesShared<D> <= device.shared_bytes_per_block) {
    if constexpr (kPlanes) launch(hadamard_planes<D, Sink>, kPlaneThreads<D>, 1, kPlanesShared<D>);
  } else if (plain) {
    launch(hadamard_tiles<D, HadamardRows::Plain, Sink>, kHadamardThreads<D, false>, kHadamardBlocks<D, false>);
  } else {
    launch(hadamard_tiles<D, HadamardRows::Any16, Sink>, kHadamardThreads<D, false>, kHadamardBlocks<D, false>);
  }
}

template <class Sink>
void launch_hadamard(const char* what, const RotateArgs<Sink>& a, int sides, const DeviceInfo& device, cudaStream_t stream) {
  switch (a.side[0].codec.dim) {
    case 64: launch_hadamard_dim<64>(what, a, sides, device, stream); break;
    case 128: launch_hadamard_dim<128>(what, a, sides, device, stream); break;
    default: launch_hadamard_dim<256>(what, a, sides, device, stream);
  }
}

}  // namespace tq4::gpu
