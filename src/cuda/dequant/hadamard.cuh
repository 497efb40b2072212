// Codes back to rows of the original space by a Hadamard matrix that is nowhere (tiles/hadamard.cuh): centroids as fp16 fragments straight from
// the codes, products with +-1, times the row's scale. A warp has 8 rows, nothing is shared between warps. `Rows` is that of tiles.cuh.
#pragma once

#include "cuda/dequant/tiles.cuh"
#include "cuda/tiles/hadamard.cuh"

namespace tq4::gpu {

constexpr int kBackThreads = 256, kBackRows = 8;
template <int D>
constexpr int kBackBlocks = D == 64 ? 4 : 3;  ///< a multiprocessor's

template <int D, class Rows>
__global__ void __launch_bounds__(kBackThreads, kBackBlocks<D>) hadamard_back(const __grid_constant__ Rows a) {
  constexpr int kChunks = kLaneChunks<D>;
  static_assert(kChunks == 2 || kChunks == 4);
  __shared__ unsigned signs[D / 2];
  const InverseSide& side = a.side();
  const SideTables& tables = side.codec.t;
  const int thread = static_cast<int>(threadIdx.x), lane = thread & 31, g = lane >> 2, t = lane & 3;
  const HadamardFragments fragments = hadamard_fragments(false, lane);
  const float table = __ldg(tables.cells + 64 + lane);
  const bool has_signs = tables.hadamard_signs != nullptr, squared = side.codec.norm_correction != 0;
  if (has_signs) {
    for (int i = thread; i < D / 2; i += kBackThreads)
      signs[i] = (__float_as_uint(tables.hadamard_signs[2 * i]) & 0x80000000u) >> 16 |
                 (__float_as_uint(tables.hadamard_signs[2 * i + 1]) & 0x80000000u);
  }
  __syncthreads();
  wait_for_previous_kernels();
  launch_dependents();

  const unsigned rows = a.count(), step = gridDim.x * (kBackThreads / 32) * kBackRows;
  unsigned first = (static_cast<unsigned>(thread) / 32 * gridDim.x + blockIdx.x) * kBackRows;
  unsigned raw[raw_words<Rows, kChunks>()];
  InverseRow next{};
  const auto fetch = [&] {
    next = a.row(min(first + static_cast<unsigned>(g), rows - 1));
    a.fetch(raw, next, t);
  };
  if (first < rows) fetch();
  while (first < rows) {
    unsigned w[kChunks];
    spread_row(a, w, raw, next);
    if (side.nibbles_high) {
#pragma unroll
      for (unsigned& v : w) v = (v >> 4 & 0x0f0f0f0fu) | (v & 0x0f0f0f0fu) << 4;
    }
    trade_words(w, t);  // of neighbouring coordinates to those of lane_chunk()
    HadamardSums<D> x{};
    float squares = 0.0f;
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
      unsigned pairs[4];
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const float u = __shfl_sync(~0u, table, static_cast<int>(w[c] >> (2 * k * side.row_bits)));
        const float v = __shfl_sync(~0u, table, static_cast<int>(w[c] >> ((2 * k + 1) * side.row_bits)));
        if (squared) squares = __fmaf_rn(u, u, __fmaf_rn(v, v, squares));
        pairs[k] = half2_bits(u, v);
      }
      add_chunk<D, false>(x, c, pairs, fragments);
    }
    float factor = scale_of(a, next) * tables.image_scale;
    if (squared) {
      squares += __shfl_xor_sync(~0u, squares, 1);
      squares += __shfl_xor_sync(~0u, squares, 2);
      factor *= __fdiv_rn(1.0f, __fsqrt_rn(__fadd_rn(squares, 1e-16f)));
    }
    const std::int64_t out = first + static_cast<unsigned>(g) < rows ? next.out : -1;
    first += step;
    if (first < rows) fetch();
    finish_sums(x);
    if (out >= 0) {
#pragma unroll
      for (int c = 0; c < kChunks; ++c) {
        const int at = lane_chunk<D>(t, c);
        float v[8];
#pragma unroll
        for (int k = 0; k < 8; ++k) v[k] = x.v[c][k / 4][k % 4] * factor;
        if (has_signs) {
#pragma unroll
          for (int k = 0; k < 8; ++k)
            v[k] =
                __uint_as_float(__float_as_uint(v[k]) ^ (k % 2 == 0 ? signs[at / 2 + k / 2] << 16 : signs[at / 2 + k / 2] & 0x80000000u));
        }
        put_eight(a.out(), static_cast<DType>(a.dtype), out + at, v);
      }
    }
  }
}

/// Whether codes of this side that inverse_serves() says yes to become rows of this dtype there. fp32 needs a second part of the centroids: the
/// kernel with the matrix is faster then.
inline bool hadamard_back_serves(const RowCodec& r, DType dtype) {
  return r.t.hadamard && r.t.centre == nullptr && dtype != DType::F32 && r.dim <= 128;
}

/// `rows` rows for each of grid_y, grid_z.
template <class Rows>
void launch_hadamard_back(const char* what, const Rows& a, std::int64_t rows, unsigned grid_y, unsigned grid_z, int dim,
                          const DeviceInfo& device, cudaStream_t stream) {
  const auto launch = [&](auto* kernel, int blocks) {
    const std::int64_t warps = (rows + kBackRows - 1) / kBackRows, needed = (warps + kBackThreads / 32 - 1) / (kBackThreads / 32),
                       most = std::max<std::int64_t>(1, device.sm_count * blocks / static_cast<std::int64_t>(grid_y * grid_z));
    const dim3 grid(static_cast<unsigned>(std::clamp<std::int64_t>(needed, 1, most)), grid_y, grid_z);
    launch_kernel_early_if(launches_early(device), what, {grid, kBackThreads, 0, stream}, kernel, a);
  };
  dim == 64 ? launch(hadamard_back<64, Rows>, kBackBlocks<64>) : launch(hadamard_back<128, Rows>, kBackBlocks<128>);
}

}  // namespace tq4::gpu
