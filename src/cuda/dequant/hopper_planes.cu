// Planes back to rows of the original space, fp16 and bf16, on Hopper GPUs. A block a multiprocessor takes 64 rows a warpgroup at a time; a warp has
// 16 of them to itself from end to end:
//   - its codes and scales come by bulk copies into a ring in shared memory, several steps ahead;
//   - a look-up turns a pair of codes into half2 (pairs.cuh): the operand A of the products, in registers;
//   - B, the inverse matrix (tiles/image.h; of +-1 for Hadamard), stays in shared memory, so that the tensor cores read it once for four warps;
//   - the rows, times their scales, leave through shared memory as one bulk store of 16 neighbouring rows.
// The first codes are on their way before the matrix and the table are there.
#include "cuda/dequant/hopper_planes.h"

#include <type_traits>

#include "cuda/dequant/pairs.cuh"
#include "cuda/dequant/tiles.cuh"
#include "cuda/launch.cuh"
#include "cuda/wgmma.cuh"

namespace tq4::gpu {
namespace {

template <int D>
struct BackShape {
  static constexpr int kGroups = D == 256 ? 3 : 4;  ///< warpgroups
  static constexpr int kThreads = kGroups * 128, kWarps = kGroups * 4;
  static constexpr int kSteps = D == 64 ? 8 : D == 128 ? 4 : 3;  ///< of the ring
  static constexpr bool kStaged = D != 256;                      ///< rows leave through shared memory: the matrix leaves room for it
  using Pairs = PairTable<D == 256 ? 16 : 32>;
  static constexpr int kCodes = 16 * D / 2, kSlot = kCodes + 64;
  static constexpr int kTable = image_part_bytes(D), kRows = kTable + Pairs::kBytes, kRing = kRows + (kStaged ? kWarps * 32 * D : 0),
                       kBars = kRing + kWarps * kSteps * kSlot, kBytes = kBars + kWarps * kSteps * 8 + 1024;
};

/// A lane's codes of one row from the ring: as fetch_groups() (tiles.cuh) has them from global memory.
template <int G>
__device__ __forceinline__ void slot_groups(unsigned (&raw)[G], std::uint32_t at, int bits) {
  if constexpr (G == 8) {
    if (bits == 4) {
      lds128(at, raw);
      lds128(at + 16, raw + 4);
      return;
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int i = 0; i < 3; ++i) {
        if (i < bits) raw[4 * half + i] = lds32(at + static_cast<std::uint32_t>(4 * (half * bits + i)));
      }
    }
  } else if constexpr (G == 4) {
    if (bits == 4) {
      lds128(at, raw);
      return;
    }
#pragma unroll
    for (int i = 0; i < 3; ++i) {
      if (i < bits) raw[i] = lds32(at + static_cast<std::uint32_t>(4 * i));
    }
  } else {
    static_assert(G == 2);
    if (bits == 4) {
      lds64(at, raw);
    } else if (bits == 2) {
      raw[0] = lds32(at);
    } else {
      raw[0] = lds16(at);
      if (bits == 3) raw[0] |= lds16(at + 2) << 16, raw[1] = lds16(at + 4);
    }
  }
}
template <int D, bool Bf16>
__global__ void __launch_bounds__(BackShape<D>::kThreads, 1) planes_back(const __grid_constant__ PlanesBackArgs a) {
  using Shape = BackShape<D>;
  constexpr int kColumns = D < 128 ? D : 128;  // of the rows, at a time
  TQ4_DYNAMIC_SHARED(float, memory);
  const SideTables& tables = a.codec.t;
  const int thread = static_cast<int>(threadIdx.x), lane = thread & 31, g = lane >> 2, t = lane & 3;
  const int warp = __shfl_sync(~0u, thread / 32, 0);
  const std::uint32_t image = image_address(memory), rows_at = image + static_cast<std::uint32_t>(Shape::kRows + warp * 32 * D),
                      ring = image + static_cast<std::uint32_t>(Shape::kRing + warp * Shape::kSteps * Shape::kSlot),
                      bars = image + static_cast<std::uint32_t>(Shape::kBars + warp * Shape::kSteps * 8);
  if (lane < Shape::kSteps) mbarrier_init(bars + static_cast<std::uint32_t>(8 * lane));
  fence_mbarrier_init();
  __syncwarp();
  begin_image<D>(image, tables.inverse_image, thread, Shape::kThreads);
  const float centroid = __ldg(tables.cells + 64 + lane);
  wait_for_previous_kernels();
  launch_dependents();

  const unsigned rows = static_cast<unsigned>(a.rows), row_bytes = static_cast<unsigned>(D / 8 * a.row_bits), lane_bytes = row_bytes / 4;
  const unsigned step = gridDim.x * Shape::kGroups * kInverseRows;
  // The same for a warpgroup (first), for a warp (own): its tile of 64 rows, its 16 of them.
  unsigned first = (static_cast<unsigned>(warp / 4) * gridDim.x + blockIdx.x) * kInverseRows,
           own = first + static_cast<unsigned>(warp % 4 * 16);
  const auto ask = [&](unsigned from, unsigned slot) {
    if (lane != 0 || from + 16 > rows) return;
    const std::uint32_t bar = bars + 8 * slot, to = ring + slot * Shape::kSlot;
    mbarrier_arrive_expect(bar, static_cast<int>(16 * row_bytes + 64));
    bulk_copy(to, a.in.codes + static_cast<std::int64_t>(from) * row_bytes, static_cast<int>(16 * row_bytes), bar);
    bulk_copy(to + Shape::kCodes, a.in.scale + from, 64, bar);
  };
#pragma unroll
  for (unsigned i = 0; i < Shape::kSteps; ++i) ask(own + i * step, i);
  Shape::Pairs::fill(image + Shape::kTable, centroid, a.row_bits, a.nibbles_high != 0, thread, Shape::kThreads);
  const typename Shape::Pairs pairs(image + Shape::kTable, a.row_bits, lane);
  finish_image();
  unsigned slot = 0, parity = 0;
  for (; first < rows; first += step, own += step) {
    const std::uint32_t codes = ring + slot * Shape::kSlot;
    const int valid = own < rows ? static_cast<int>(min(rows - own, 16u)) : 0;
    if (valid == 16) {
      mbarrier_wait(bars + 8 * slot, parity);
    } else {  // the warp's last rows, and fewer than a bulk copy takes
      const auto* from = reinterpret_cast<const unsigned short*>(a.in.codes + static_cast<std::int64_t>(own) * row_bytes);
#pragma unroll 1
      for (int i = lane; i < valid * static_cast<int>(row_bytes) / 2; i += 32) sts16(codes + static_cast<unsigned>(2 * i), from[i]);
      if (lane < valid) sts32(codes + static_cast<unsigned>(Shape::kCodes + 4 * lane), __float_as_uint(a.in.scale[own + lane]));
      __syncwarp();
    }
    RowFragments<D> f;
    float factor[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const auto row = static_cast<unsigned>(g + 8 * r);
      unsigned raw[D / 32], w[D / 32];
      slot_groups(raw, codes + row * row_bytes + static_cast<unsigned>(t) * lane_bytes, a.row_bits);
      spread_groups(w, raw, a.row_bits);
      pair_fragments<D>(f, r, w, pairs);
      factor[r] = lds_f32(codes + Shape::kCodes + 4 * row) * tables.image_scale;
    }
    if (a.codec.norm_correction) {
#pragma unroll
      for (int r = 0; r < 2; ++r) factor[r] *= __fdiv_rn(1.0f, __fsqrt_rn(__fadd_rn(of_four_lanes(squares_of<D>(f, r)), 1e-16f)));
    }
    __syncwarp();
    ask(own + Shape::kSteps * step, slot);
    if (++slot == Shape::kSteps) slot = 0, parity ^= 1;
#pragma unroll
    for (int half = 0; half < D / kColumns; ++half) {
      float x[kColumns / 2];
      wgmma_begin();
      const std::uint64_t operand = wgmma_rows(image + static_cast<std::uint32_t>(half * kColumns * 128));
#pragma unroll
      for (int s = 0; s < D / 16; ++s)
        wgmma_registers_rows(x, f[s], wgmma_further(operand, static_cast<std::uint32_t>(s / 4 * D * 128 + s % 4 * 32)), s != 0);
      wgmma_commit();
      wgmma_wait<0>();
      settle(x);
      if constexpr (Shape::kStaged) {
        bulk_stores_read();
        __syncwarp();
      }
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const auto row = static_cast<unsigned>(g + 8 * r);
        constexpr int kChunks = kColumns / 32;
        const float* centre =
            tables.centre ? tables.centre + static_cast<std::int64_t>((own + row) % static_cast<unsigned>(a.heads)) * D : nullptr;
        uint4 v[kChunks];
#pragma unroll
        for (int c = 0; c < kChunks; ++c) {
          float e[8];
#pragma unroll
          for (int k = 0; k < 8; ++k) e[k] = x[4 * (4 * c + k / 2) + 2 * r + k % 2] * factor[r];
          if (centre) {
#pragma unroll
            for (int k = 0; k < 8; ++k) e[k] += __ldg(centre + half * kColumns + 32 * c + 8 * t + k);
          }
          v[c] = Bf16 ? make_uint4(bf16x2_bits(e[0], e[1]), bf16x2_bits(e[2], e[3]), bf16x2_bits(e[4], e[5]), bf16x2_bits(e[6], e[7]))
                      : make_uint4(half2_bits(e[0], e[1]), half2_bits(e[2], e[3]), half2_bits(e[4], e[5]), half2_bits(e[6], e[7]));
        }
#pragma unroll
        for (int c = 0; c < kChunks; ++c) {
          if constexpr (Shape::kStaged) {
            // Rows are a multiple of all banks long: neighbours take their chunks in other orders, so that they do not meet.
            const bool odd = (g & 1) != 0;
            const uint4 s = odd ? v[c ^ 1] : v[c];
            sts128_words<0>(rows_at + row * (2 * D) + static_cast<unsigned>((4 * (odd ? c ^ 1 : c) + t) * 16), static_cast<int>(s.x),
                            static_cast<int>(s.y), static_cast<int>(s.z), static_cast<int>(s.w));
          } else if (static_cast<int>(row) < valid) {
            auto* to = static_cast<std::uint16_t*>(a.out) + static_cast<std::int64_t>(own + row) * D + half * kColumns + 32 * c + 8 * t;
            *reinterpret_cast<uint4*>(to) = v[c];
          }
        }
      }
    }
    if constexpr (Shape::kStaged) {
      fence_bulk_copies();
      __syncwarp();
      if (lane == 0 && valid > 0)
        bulk_store(static_cast<std::uint16_t*>(a.out) + static_cast<std::int64_t>(own) * D, rows_at, valid * 2 * D);
    }
  }
  if constexpr (Shape::kStaged) bulk_stores_read();
}

}  // namespace

bool planes_back_serves(const PlanesBackArgs& a, DType out_dtype, const DeviceInfo& device) {
  const RowCodec& r = a.codec;
  const auto aligned = [](const void* address) { return reinterpret_cast<std::uintptr_t>(address) % 16 == 0; };
  return device.compute_major == 9 && out_dtype != DType::F32 && r.kind == static_cast<int>(CodeKind::Mse) && r.t.cells &&
         !r.t.pair_points && r.t.inverse_image && !r.t.per_head && !r.t.rope_mu && has_image(r.dim) && a.rows < (std::int64_t{1} << 31) &&
         aligned(a.in.codes) && aligned(a.in.scale) && aligned(a.out);
}

void launch_planes_back(const char* what, const PlanesBackArgs& a, DType out_dtype, const DeviceInfo& device, cudaStream_t stream) {
  const auto launch = [&](auto d) {
    constexpr int kDim = decltype(d)::value;
    using Shape = BackShape<kDim>;
    auto* kernel = out_dtype == DType::BF16 ? planes_back<kDim, true> : planes_back<kDim, false>;
    const std::int64_t tiles = (a.rows + kInverseRows - 1) / kInverseRows, needed = (tiles + Shape::kGroups - 1) / Shape::kGroups;
    const auto grid = static_cast<unsigned>(std::min<std::int64_t>(needed, device.sm_count));
    allow_shared(kernel, Shape::kBytes, device.shared_bytes_per_block, what);
    launch_kernel_early(what, {grid, Shape::kThreads, Shape::kBytes, stream}, kernel, a);
  };
  a.codec.dim == 64    ? launch(std::integral_constant<int, 64>{})
  : a.codec.dim == 128 ? launch(std::integral_constant<int, 128>{})
                       : launch(std::integral_constant<int, 256>{});
}

}  // namespace tq4::gpu
