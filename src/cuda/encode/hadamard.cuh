// encode and store of many rows turned by a Hadamard matrix, without the matrix: rows go from global memory to the tensor cores' fragments and to
// codes in registers (tiles/hadamard.cuh, lanes.cuh), a warp has 8 rows, nothing is shared between warps. fp32 is three bf16 parts.
#pragma once

#include <type_traits>

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

constexpr int kHadamardThreads = 256;
template <int D, bool Wide>
constexpr int kHadamardBlocks = D == 256  ? 1
                                : Wide    ? 2
                                : D == 64 ? 4
                                          : 3;  ///< a multiprocessor's
constexpr int kHadamardRows = 8;                ///< a warp's

/// Wide: x is fp32.
template <int D, bool Wide, class Sink>
__global__ void __launch_bounds__(kHadamardThreads, kHadamardBlocks<D, Wide>) hadamard_tiles(const __grid_constant__ RotateArgs<Sink> a) {
  constexpr int kChunks = kLaneChunks<D>, kWords = Wide ? 2 : 1;
  __shared__ uint4 signs[D / 8];  // of a chunk's words
  const bool key = blockIdx.z == 0;
  const RotateSide& side = a.side[Sink::kSides == 1 ? 0 : blockIdx.z];
  const SideTables& tables = side.codec.t;
  const int thread = static_cast<int>(threadIdx.x), lane = thread & 31, g = lane >> 2, t = lane & 3;
  if (tables.identity) {
    wait_for_previous_kernels();
    launch_dependents();
    unrotated_rows<D, kHadamardThreads>(a, side, key, blockIdx.x, gridDim.x);
    return;
  }
  const bool bf16 = Wide || static_cast<DType>(a.dtype) == DType::BF16, has_signs = tables.hadamard_signs != nullptr;
  const HadamardFragments fragments = hadamard_fragments(bf16, lane);
  const CodeCells cells = load_cells(tables, lane);
  if (has_signs) {
#pragma unroll 1
    for (int i = thread; i < D / 2; i += kHadamardThreads)
      reinterpret_cast<unsigned*>(signs)[i] = (__float_as_uint(tables.hadamard_signs[2 * i]) & 0x80000000u) >> 16 |
                                              (__float_as_uint(tables.hadamard_signs[2 * i + 1]) & 0x80000000u);
  }
  __syncthreads();
  wait_for_previous_kernels();
  launch_dependents();  // not earlier: see DecodeParams::fresh_tokens

  const unsigned rows = row_count(a), step = gridDim.x * (kHadamardThreads / 32) * kHadamardRows;
  unsigned first = (static_cast<unsigned>(thread) / 32 * gridDim.x + blockIdx.x) * kHadamardRows;
  RowPlace place{-1, 0};
  uint4 raw[kChunks][kWords];
  const auto fetch = [&] {
    const unsigned row = first + static_cast<unsigned>(g);
    place = row < rows ? row_place(a, row) : RowPlace{-1, 0};
    const std::int64_t at = row < rows ? place.token * side.token_stride + place.head * side.head_stride : 0;
    const auto* x = reinterpret_cast<const uint4*>(static_cast<const std::uint16_t*>(side.x) + kWords * (at + lane_chunk<D>(t, 0)));
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
#pragma unroll
      for (int k = 0; k < kWords; ++k)
        raw[c][k] = __ldcs(x + kWords * lane_chunk<D>(0, c) / 8 + k);  // rows that are not there read others and are not stored
    }
  };
  if (first < rows) fetch();
  while (first < rows) {
    HadamardSums<D> y{};
    if constexpr (Wide) {
#pragma unroll
      for (int c = 0; c < kChunks; ++c) {
        const unsigned v[8] = {raw[c][0].x, raw[c][0].y, raw[c][0].z, raw[c][0].w, raw[c][1].x, raw[c][1].y, raw[c][1].z, raw[c][1].w};
        const uint4 s = has_signs ? signs[lane_chunk<D>(t, c) / 8] : make_uint4(0, 0, 0, 0);
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
          const uint4 s = signs[lane_chunk<D>(t, c) / 8];
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
    const auto fetched = a.sink.fetch(place);
    const int head = place.head;
    first += step;
    if (first < rows) fetch();  // what comes next arrives while these rows are coded
    finish_sums(y);
    auto codes = code_lanes<D / 4, 4>(
        side.codec, cells, [&](int i) { return y.v[i / 8][i / 4 % 2][i % 4]; }, tables.image_scale);
    trade_words_back(codes.low, t);
    if (side.codec.bits == 8) trade_words_back(codes.high, t);
    a.sink.template put<D / 4>(side.codec, key, a.sink.slot(fetched), head, D / 4 * t, codes);
  }
}

/// Whether these rows go there.
template <class Sink>
bool hadamard_serves(const RotateArgs<Sink>& a, int sides, const DeviceInfo& device) {
  for (int s = 0; s < sides; ++s) {
    const SideTables& t = a.side[s].codec.t;
    if (!(t.hadamard || t.identity) || t.centre) return false;
  }
  return sides * a.n * a.heads >= static_cast<std::int64_t>(kTileRows) * device.sm_count;
}

template <int D, class Sink>
void launch_hadamard_dim(const char* what, const RotateArgs<Sink>& a, int sides, const DeviceInfo& device, cudaStream_t stream) {
  const std::int64_t rows = a.n * a.heads, tiles = (rows + kHadamardRows - 1) / kHadamardRows;
  const auto launch = [&](auto* kernel, int blocks) {
    const std::int64_t most = std::max(1, device.sm_count * blocks / sides), warps = kHadamardThreads / 32;
    const dim3 grid(static_cast<unsigned>(std::clamp<std::int64_t>((tiles + warps - 1) / warps, 1, most)), 1u,
                    static_cast<unsigned>(sides));
    launch_kernel_early_if(device.compute_major >= 9, what, {grid, kHadamardThreads, 0, stream}, kernel, a);
  };
  if (static_cast<DType>(a.dtype) == DType::F32) {
    launch(hadamard_tiles<D, true, Sink>, kHadamardBlocks<D, true>);
  } else {
    launch(hadamard_tiles<D, false, Sink>, kHadamardBlocks<D, false>);
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
