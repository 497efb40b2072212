// encode and store on the tensor cores: rows are turned by the matrix's image, coded in registers and handed to a sink. Kernels for many rows keep
// the image in a block's shared memory, a warpgroup takes 64 rows at a time: rotate_rows.cuh for fp16 and bf16 rows as they are, `tiles` for all others;
// `step` is for few rows (16 a block, the warps share the matrix's rows and hold them in registers before x is there).
#pragma once

#include <bit>

#include "cuda/encode/rotate.h"
#include "cuda/encode/rotate_rows.cuh"
#include "cuda/tiles/rows.cuh"

namespace tq4::gpu {

// ---- Many rows ----------------------------------------------------------------------------------------------------------------------

constexpr int kTileThreads = 384;

/// A lane's share of two rows (g, g + 8 of its warp's 16) as fragments: hi + lo, times factor. `norm`: as turboquant-vllm sums it, where that is asked for.
template <int D>
struct TileRows {
  RowFragments<D> hi, lo;
  float factor[2], norm[2];
};
/// Scaled and split. All of both rows is asked for before any of it is looked at; rows that are not there (at < 0) read the first.
template <int D, bool Wide, bool Normed>
__device__ __forceinline__ void load_split_rows(TileRows<D>& rows, const RotateSide& side, DType dtype, const std::int64_t (&at)[2],
                                                const RowPlace (&place)[2], int t) {
  constexpr int kWords = Wide ? 2 : 1;
  uint4 raw[2][D / 32][kWords];
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const auto* x =
        reinterpret_cast<const uint4*>(static_cast<const std::uint16_t*>(side.x) + kWords * (max(at[r], std::int64_t{0}) + 8 * t));
#pragma unroll
    for (int c = 0; c < D / 32; ++c) {
#pragma unroll
      for (int k = 0; k < kWords; ++k) raw[r][c][k] = __ldcs(x + kWords * 4 * c + k);
    }
  }
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    float v[D / 32][8], largest = 0.0f;
#pragma unroll
    for (int c = 0; c < D / 32; ++c)
      eight_numbers(v[c], raw[r][c][0], raw[r][c][kWords - 1], Wide ? DType::F32 : dtype == DType::BF16 ? DType::BF16 : DType::F16);
    if (side.codec.t.centre != nullptr) {
      const float* centre = side.codec.t.centre + static_cast<std::int64_t>(place[r].head) * D;
#pragma unroll
      for (int c = 0; c < D / 32; ++c) {
#pragma unroll
        for (int k = 0; k < 8; ++k) v[c][k] = __fsub_rn(v[c][k], __ldg(centre + 32 * c + 8 * t + k));
      }
    }
    if constexpr (Normed) rows.norm[r] = norm_of_chunks(v, t);
#pragma unroll
    for (int c = 0; c < D / 32; ++c) {
#pragma unroll
      for (int k = 0; k < 8; ++k) largest = largest_of(largest, v[c][k]);
    }
    largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, 1));
    largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, 2));
    const float2 power = row_power(largest);
#pragma unroll
    for (int c = 0; c < D / 32; ++c) {
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const int s = 2 * c + k / 2, i = k % 2 * 2 + r;
        split_pair(v[c][2 * k] * power.x, v[c][2 * k + 1] * power.x, rows.hi[s][i], rows.lo[s][i]);
      }
    }
    rows.factor[r] = side.codec.t.image_scale * power.y;
  }
}

/// Parts of the matrix are a parameter, and what a warpgroup loops over is the same in all of its lanes for the compiler, too: products behind
/// branches that it takes for divergent wait for each other.
template <int D, int Parts, class Sink>
__global__ void __launch_bounds__(kTileThreads, 1) rotate_tiles(const __grid_constant__ RotateArgs<Sink> a) {
  TQ4_DYNAMIC_SHARED(float, memory);
  const bool key = blockIdx.z == 0;
  const RotateSide& side = a.side[Sink::kSides == 1 ? 0 : blockIdx.z];
  const RowCodec& codec = side.codec;
  const SideTables& tables = side.codec.t;
  const int thread = static_cast<int>(threadIdx.x), lane = thread & 31, g = lane >> 2, t = lane & 3;
  if (!kPeerNorm<Sink> && tables.identity) {
    wait_for_previous_kernels();
    launch_dependents();
    unrotated_rows<D, kTileThreads>(a, side, key, blockIdx.x, gridDim.x);
    return;
  }
  const std::uint32_t image = image_address(memory);
  const CodeTableParts parts = code_table_parts<kTileThreads / 32>(tables, thread >> 5, lane);
  copy_image_begin<D>(image, image_of(tables, tables.forward_image, D), side.parts, Parts, thread, kTileThreads);
  wait_for_previous_kernels();
  launch_dependents();  // not earlier: see DecodeParams::fresh_tokens

  const unsigned rows = row_count(a), tiles = (rows + kTileRows - 1) / kTileRows, step = gridDim.x * (kTileThreads / 128);
  unsigned tile = static_cast<unsigned>(__shfl_sync(~0u, thread / 128, 0)) * gridDim.x + blockIdx.x;
  const unsigned mine = static_cast<unsigned>(thread) % 128 / 32 * 16 + static_cast<unsigned>(g);
  RowPlace place[2], next[2];
  std::int64_t at[2];
  const auto locate = [&](unsigned which) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const unsigned i = which * kTileRows + mine + 8 * static_cast<unsigned>(r);
      next[r] = i < rows ? row_place(a, i) : RowPlace{-1, 0};
      at[r] = i < rows ? row_offset<D, false>(a, side, next[r]) : -1;
    }
  };
  if (tile < tiles) locate(tile);
  const CodeTable table =
      code_table<kTileThreads / 32>(reinterpret_cast<unsigned char*>(memory) + image_shared_bytes(D, Parts), parts, thread >> 5, lane);
  finish_image();
  for (; tile < tiles; tile += step) {
    TileRows<D> x;
    if (static_cast<DType>(a.dtype) == DType::F32) {
      load_split_rows<D, true, kPeerNorm<Sink>>(x, side, DType::F32, at, next, t);
    } else {
      load_split_rows<D, false, kPeerNorm<Sink>>(x, side, static_cast<DType>(a.dtype), at, next, t);
    }
    float y[D / 2];
    products_begin();
    add_product<D>(y, x.hi, image, true);
    if constexpr (Parts > 1) add_product<D>(y, x.hi, image + image_part_bytes(D), false);
    add_product<D>(y, x.lo, image, false);
    products_end();
    typename Sink::Slot slot[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      place[r] = next[r];
      slot[r] = a.sink.slot(a.sink.fetch(place[r]));
    }
    if (tile + step < tiles) {
      locate(tile + step);
      const int line = 64 * t,
                words = static_cast<DType>(a.dtype) == DType::F32 ? 2 : 1;  // what comes next is near when these rows are coded
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        if (at[r] >= 0 && line < words * D) prefetch_l2(static_cast<const std::uint16_t*>(side.x) + words * at[r] + line);
      }
    }
    const auto sum = [&](int r, int i) { return y[4 * (i / 2) + 2 * r + i % 2]; };
    LaneCodes<D / 4> codes[2];
    if constexpr (kPeerNorm<Sink>) {
      table_codes_two<D / 4, false>(codes, codec, table, sum, x.factor, t);
      codes[0].scale = round_scale(codec, x.norm[0]), codes[1].scale = round_scale(codec, x.norm[1]);
    } else if (codec.kind == static_cast<int>(CodeKind::Fp8)) {
#pragma unroll
      for (int r = 0; r < 2; ++r) codes[r] = fp8_lanes<D / 4>([&](int i) { return sum(r, i); }, x.factor[r]);
    } else {
      table_codes_two<D / 4>(codes, codec, table, sum, x.factor, t);
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) a.sink.template put<D / 4>(codec, key, slot[r], place[r].head, D / 4 * t, codes[r]);
  }
}

// ---- Few rows -----------------------------------------------------------------------------------------------------------------------

constexpr int kStepRows = 16;
constexpr std::size_t step_shared_bytes(int dim) { return static_cast<std::size_t>(kStepRows * ((dim + 8) * 4 + (dim + 4) * 4 + 4)); }

/// The rows of the matrix that a warp multiplies with: fragments of two tiles of 8 rows. A lane's 16-byte chunk (4 c + t of its row) serves
/// products 2 c and 2 c + 1: word w has coordinates 32 c + 8 w + 2 t + {0, 1}, and so have the fragments of x.
template <int D>
__device__ __forceinline__ void load_matrix_rows(uint4 (&b)[2][D / 32], const std::uint16_t* part, int warp, int g, int t) {
#pragma unroll
  for (int j = 0; j < 2; ++j) {
#pragma unroll
    for (int c = 0; c < D / 32; ++c) {
      b[j][c] = __ldg(reinterpret_cast<const uint4*>(reinterpret_cast<const unsigned char*>(part) +
                                                     image_byte(D, 16 * warp + 8 * j + g, 8 * (4 * c + t))));
    }
  }
}
/// y[0] + y[1] += x b^T, so that products do not wait for each other; x [16][D + 8] fp16 in shared memory.
using StepSums = float[2][2][4];
template <int D>
__device__ __forceinline__ void multiply_rows(StepSums& y, const std::uint16_t* x, const uint4 (&b)[2][D / 32], int g, int t) {
#pragma unroll
  for (int c = 0; c < D / 32; ++c) {
    std::uint32_t upper[4], lower[4];
#pragma unroll
    for (int w = 0; w < 4; ++w) {
      upper[w] = *reinterpret_cast<const std::uint32_t*>(x + g * (D + 8) + 32 * c + 8 * w + 2 * t);
      lower[w] = *reinterpret_cast<const std::uint32_t*>(x + (g + 8) * (D + 8) + 32 * c + 8 * w + 2 * t);
    }
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      mma(y[0][j], upper[0], lower[0], upper[1], lower[1], b[j][c].x, b[j][c].y);
      mma(y[1][j], upper[2], lower[2], upper[3], lower[3], b[j][c].z, b[j][c].w);
    }
  }
}

template <int D, class Sink>
__global__ void __launch_bounds__(2 * D) rotate_step(const __grid_constant__ RotateArgs<Sink> a) {
  constexpr int kRowLanes = D / 8, kPitch = D + 8, kSumPitch = D + 4;
  TQ4_DYNAMIC_SHARED(float, memory);
  float *y = memory, *factors = y + kStepRows * kSumPitch;
  auto* hi = reinterpret_cast<std::uint16_t*>(factors + kStepRows);
  std::uint16_t* lo = hi + kStepRows * kPitch;
  const bool key = blockIdx.z == 0;
  const RotateSide& side = a.side[Sink::kSides == 1 ? 0 : blockIdx.z];
  const SideTables& tables = side.codec.t;
  const int thread = static_cast<int>(threadIdx.x), warp = thread >> 5, lane = thread & 31, g = lane >> 2, t = lane & 3;

  // What the codec alone decides, while the kernel before this one ends.
  const std::uint16_t* image = image_of(tables, tables.forward_image, D);
  uint4 first[2][D / 32], second[2][D / 32];
  if (!tables.identity) load_matrix_rows<D>(first, image, warp, g, t);
  if (D <= 128 && side.parts > 1) load_matrix_rows<D>(second, image + D * D, warp, g, t);
  const CodeCells cells = load_cells(tables, lane);
  const bool plain = plain_rows(side.codec, static_cast<DType>(a.dtype));
  wait_for_previous_kernels();
  launch_dependents();  // not earlier: see DecodeParams::fresh_tokens

  const int row = thread / kRowLanes, chunk = thread % kRowLanes;
  const unsigned index = blockIdx.x * kStepRows + static_cast<unsigned>(row);
  const RowPlace place = index < row_count(a) ? row_place(a, index) : RowPlace{-1, 0};
  const auto fetched = a.sink.fetch(place);  // looked at after x has arrived
  const float* centre = centre_of(tables, D, place.head);
  float v[8];
  load_eight(v, side.x, static_cast<DType>(a.dtype),
             place.token < 0 ? -1 : place.token * side.token_stride + place.head * side.head_stride + 8 * chunk,
             centre ? centre + 8 * chunk : nullptr);
  if (!kPeerNorm<Sink> && tables.identity) {
    a.sink.template put<8>(side.codec, key, a.sink.slot(fetched), place.head, 8 * chunk,
                           unrotated_codes<kRowLanes, Sink::kSides == 2>(side.codec, v));
    return;
  }
  if constexpr (kPeerNorm<Sink>) {
    auto* squares = reinterpret_cast<float4*>(y + row * kSumPitch + 8 * chunk);
#pragma unroll
    for (int k = 0; k < 8; k += 4)
      squares[k / 4] =
          make_float4(__fmul_rn(v[k], v[k]), __fmul_rn(v[k + 1], v[k + 1]), __fmul_rn(v[k + 2], v[k + 2]), __fmul_rn(v[k + 3], v[k + 3]));
  }
  float2 power = make_float2(1.0f, 1.0f);
  if (!plain) {
    float largest = 0.0f;
#pragma unroll
    for (const float f : v) largest = largest_of(largest, f);
#pragma unroll
    for (int o = 1; o < kRowLanes; o *= 2) largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, o));
    power = row_power(largest);
  }
  std::uint32_t h[4], l[4];
#pragma unroll
  for (int k = 0; k < 4; ++k) split_pair(v[2 * k] * power.x, v[2 * k + 1] * power.x, h[k], l[k]);
  *reinterpret_cast<uint4*>(hi + row * kPitch + 8 * chunk) = make_uint4(h[0], h[1], h[2], h[3]);
  if (!plain) *reinterpret_cast<uint4*>(lo + row * kPitch + 8 * chunk) = make_uint4(l[0], l[1], l[2], l[3]);
  if (chunk == 0) factors[row] = tables.image_scale * power.y;
  __syncthreads();

  StepSums sums = {}, more = {};
  multiply_rows<D>(sums, hi, first, g, t);
  if (!plain) multiply_rows<D>(sums, lo, first, g, t);
  if (side.parts > 1) {
    if (D > 128) load_matrix_rows<D>(second, image + D * D, warp, g, t);
    multiply_rows<D>(more, hi, second, g, t);
  }
  [[maybe_unused]] float norm = 0.0f;
  if constexpr (kPeerNorm<Sink>) {
    norm = norm_of_squares<D>(y + row * kSumPitch, chunk);
    __syncthreads();
  }
  const auto sum = [&](int j, int i) { return (sums[0][j][i] + sums[1][j][i]) + (more[0][j][i] + more[1][j][i]); };
#pragma unroll
  for (int j = 0; j < 2; ++j) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      *reinterpret_cast<float2*>(y + (g + 8 * r) * kSumPitch + lane_coordinate(LaneOrder::Quarters, D, 16 * warp + 8 * j + 2 * t)) =
          make_float2(sum(j, 2 * r), sum(j, 2 * r + 1));
    }
  }
  __syncthreads();
  float mine[8];
  const auto* from = reinterpret_cast<const float4*>(y + row * kSumPitch + 8 * chunk);
  const float4 low = from[0], high = from[1];
  mine[0] = low.x, mine[1] = low.y, mine[2] = low.z, mine[3] = low.w;
  mine[4] = high.x, mine[5] = high.y, mine[6] = high.z, mine[7] = high.w;
  auto codes = code_lanes<8, kRowLanes, !kPeerNorm<Sink>>(
      side.codec, cells, [&](int i) { return mine[i]; }, factors[row]);
  if constexpr (kPeerNorm<Sink>) codes.scale = round_scale(side.codec, norm);
  a.sink.template put<8>(side.codec, key, a.sink.slot(fetched), place.head, 8 * chunk, codes);
}

// ---- Launches -----------------------------------------------------------------------------------------------------------------------

/// False: this device has not enough shared memory.
template <int D, class Sink>
bool launch_tiles(const char* what, const RotateArgs<Sink>& a, int sides, const DeviceInfo& device, cudaStream_t stream) {
  const bool as_they_are = warpgroup_products_on(device);  // rows that are
  bool plain = true, f16 = as_they_are, bf16 = as_they_are && static_cast<DType>(a.dtype) == DType::BF16;
  constexpr int kFewestParts = kPeerNorm<Sink> || Sink::kSides == 2 ? 2 : 1;  // a kernel of one part for planes alone
  int parts = kFewestParts, fewest = 2;
  for (int s = 0; s < sides; ++s) {
    plain = plain && is_plain(a, a.side[s]);
    f16 = f16 && (a.side[s].codec.t.identity || plain_rows(a.side[s].codec, static_cast<DType>(a.dtype)));
    bf16 = bf16 && (a.side[s].codec.t.identity || a.side[s].codec.t.centre == nullptr);
    parts = std::max(parts, a.side[s].parts);
    if (!a.side[s].codec.t.identity) fewest = std::min(fewest, a.side[s].parts);
  }
  bf16 = bf16 && fewest > 1;
  const std::int64_t rows = a.by_head ? a.n : a.n * a.heads, tiles = (rows + kTileRows - 1) / kTileRows;
  const int lines = sides * (a.by_head ? a.heads : 1), threads = f16 || bf16 ? kRowTileThreads : kTileThreads, groups = threads / 128;
  const dim3 grid(static_cast<unsigned>(std::clamp<std::int64_t>((tiles + groups - 1) / groups, 1, std::max(1, device.sm_count / lines))),
                  a.by_head ? static_cast<unsigned>(a.heads) : 1u, static_cast<unsigned>(sides));
  const std::size_t shared = f16 || bf16 ? row_tiles_shared_bytes(D, parts) : image_shared_bytes(D, parts) + kCodeTableBytes;
  if (shared > device.shared_bytes_per_block) return false;
  const auto launch = [&](auto* kernel) {
    allow_shared(kernel, shared, device.shared_bytes_per_block, what);
    launch_kernel_early_if(launches_early(device), what, {grid, static_cast<unsigned>(threads), shared, stream}, kernel, a);
  };
  if constexpr (kPeerNorm<Sink>) {  // fewer kernels: their matrix is dense
    f16    ? launch(rotate_row_tiles<D, false, 2, Sink>)
    : bf16 ? launch(rotate_row_tiles<D, false, 2, Sink, true>)
           : launch(rotate_tiles<D, 2, Sink>);
  } else if (bf16) {
    launch(rotate_row_tiles<D, false, 2, Sink, true>);
  } else if (parts > 1) {
    if (!f16) {
      launch(rotate_tiles<D, 2, Sink>);
    } else {
      plain ? launch(rotate_row_tiles<D, true, 2, Sink>) : launch(rotate_row_tiles<D, false, 2, Sink>);
    }
  } else if constexpr (kFewestParts == 1) {
    f16 ? launch(rotate_row_tiles<D, false, 1, Sink>) : launch(rotate_tiles<D, 1, Sink>);
  }
  return true;
}

template <int D, class Sink>
void launch_step(const char* what, const RotateArgs<Sink>& a, int sides, const DeviceInfo& device, cudaStream_t stream) {
  const std::int64_t rows = a.by_head ? a.n : a.n * a.heads;
  const dim3 grid(static_cast<unsigned>((rows + kStepRows - 1) / kStepRows), a.by_head ? static_cast<unsigned>(a.heads) : 1u,
                  static_cast<unsigned>(sides));
  launch_kernel_early_if(launches_early(device), what, {grid, 2 * D, step_shared_bytes(D), stream}, rotate_step<D, Sink>, a);
}

/// Rows next to each other are tokens of one head, where nothing else depends on the head: no division per row. Else the numbers that divide.
template <class Sink>
void number_rows(RotateArgs<Sink>& a, bool dense) {
  if (dense && !a.by_head) {
    a.n *= a.heads;
    a.heads = 1;
  }
  a.heads_shift = static_cast<unsigned>(std::bit_width(static_cast<unsigned>(a.heads) - 1));
  a.heads_inverse = static_cast<unsigned>(((std::uint64_t{1} << (31 + a.heads_shift)) + static_cast<unsigned>(a.heads) - 1) /
                                          static_cast<unsigned>(a.heads));
}

/// rotate_serves() of rotate.h says yes for every side.
template <class Sink>
void launch_rotate(const char* what, const RotateArgs<Sink>& a, int sides, const DeviceInfo& device, cudaStream_t stream) {
  const int dim = a.side[0].codec.dim;
  bool tables = true;
  for (int s = 0; s < sides; ++s) tables = tables && table_serves(a.side[s].codec);
  const bool many = dim <= 128 && tables && sides * a.n * a.heads >= static_cast<std::int64_t>(kTileRows) * device.sm_count;
  if (dim == 64) {
    if (!many || !launch_tiles<64>(what, a, sides, device, stream)) launch_step<64>(what, a, sides, device, stream);
  } else if (dim == 128) {
    if (!many || !launch_tiles<128>(what, a, sides, device, stream)) launch_step<128>(what, a, sides, device, stream);
  } else {
    launch_step<256>(what, a, sides, device, stream);
  }
}

}  // namespace tq4::gpu
