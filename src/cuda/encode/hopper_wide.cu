// Rows of 256 fp16 coordinates to planes, turned by a dense matrix on Hopper's tensor cores. The matrix in two fp16 parts takes 256 KB, more than a
// multiprocessor's shared memory: a block keeps the half that makes 128 of a row's coordinates, codes its rows of a batch with it, and goes over them again with
// the other half. A row's length is known before its second half is, since the matrix is orthogonal: it is that of x. What the first half adds to the sums
// that make the scale waits in shared memory.
#include "cuda/encode/hopper_wide.h"

#include "cuda/encode/code_table.cuh"
#include "cuda/launch.cuh"
#include "cuda/tiles/product.cuh"

namespace tq4::gpu {
namespace {

constexpr int kDim = 256, kHalf = 128, kGroups = 3, kThreads = kGroups * 128, kRows = 64, kBatch = 24;  ///< kBatch: tiles of 64 rows
constexpr int kHalfPart = kHalf * kDim * 2, kImageBytes = 2 * kHalfPart, kPieceBytes = kHalf * 128;
/// Of a batch's rows: square of the length and sums of the first half, in the part of the table that nobody reads (code_table.cuh).
constexpr int kSquares = 256 * kCodeTableRow, kSums = kSquares + kBatch * kRows * 4;
static_assert(kSums + kBatch * kRows * 8 <= 383 * kCodeTableRow);
constexpr std::size_t kShared = kImageBytes + 1024 + kCodeTableBytes;

/// Half of the rows of both parts of an image to shared memory: blocks of 64 columns, 128 bytes a row.
__device__ __forceinline__ void begin_half(std::uint32_t to, const std::uint16_t* image, int half, int thread) {
  const auto* from = reinterpret_cast<const unsigned char*>(image) + half * kPieceBytes;
  for (int i = 16 * thread; i < kImageBytes; i += 16 * kThreads)
    copy_async_16(to + static_cast<unsigned>(i), from + i / kPieceBytes * (2 * kPieceBytes) + i % kPieceBytes);
  copy_async_commit();
}
/// The sums of x^2 of rows g and g + 8, to their four lanes.
__device__ __forceinline__ void fragment_squares(float (&square)[2], const RowFragments<kDim>& x) {
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    float part[4] = {};
#pragma unroll
    for (int s = 0; s < kDim / 16; ++s) {
#pragma unroll
      for (int k = 0; k < 2; ++k) {
        const float2 v = __half22float2(*reinterpret_cast<const __half2*>(&x[s][2 * k + r]));
        part[2 * k] = __fmaf_rn(v.x, v.x, part[2 * k]), part[2 * k + 1] = __fmaf_rn(v.y, v.y, part[2 * k + 1]);
      }
    }
    square[r] = sum_lanes<4>((part[0] + part[1]) + (part[2] + part[3]));
  }
}

__global__ void __launch_bounds__(kThreads, 1) wide_rows(const __grid_constant__ WideRowsArgs a) {
  TQ4_DYNAMIC_SHARED(float, memory);
  const SideTables& tables = a.codec.t;
  const int thread = static_cast<int>(threadIdx.x), lane = thread & 31, g = lane >> 2, t = lane & 3;
  const int group = __shfl_sync(~0u, thread / 128, 0), warp = thread / 32 % 4;
  const std::uint32_t image = image_address(memory);
  unsigned char* table_at = reinterpret_cast<unsigned char*>(memory) + kImageBytes + 1024;
  auto* squares = reinterpret_cast<float*>(table_at + kSquares);
  auto* sums = reinterpret_cast<float2*>(table_at + kSums);
  const CodeTableParts parts = code_table_parts<kThreads / 32>(tables, thread >> 5, lane);
  begin_half(image, tables.forward_image, 0, thread);
  wait_for_previous_kernels();
  launch_dependents();  // not earlier: see DecodeParams::fresh_tokens
  const CodeTable table = code_table<kThreads / 32>(table_at, parts, thread >> 5, lane);

  const unsigned rows = static_cast<unsigned>(a.rows), tiles = (rows + kRows - 1) / kRows;
  const auto* x = static_cast<const std::uint16_t*>(a.x) + 8 * t;
  const bool odd = (t & 1) != 0;
  int half = 0;
  for (unsigned batch = blockIdx.x; batch < tiles; batch += kBatch * gridDim.x) {
    const unsigned mine = min((tiles - batch + gridDim.x - 1) / gridDim.x, static_cast<unsigned>(kBatch));
    for (int pass = 0; pass < 2; ++pass) {
      if (pass == 1) {  // the next batch begins with this half
        half ^= 1;
        __syncthreads();
        begin_half(image, tables.forward_image, half, thread);
      }
      finish_image();
      const std::uint64_t operand = wgmma_rows(image);
      for (unsigned round = 0; round < mine; round += kGroups) {
        const unsigned i = round + static_cast<unsigned>(group), tile = batch + i * gridDim.x;
        const bool some = i < mine;
        const unsigned row = tile * kRows + static_cast<unsigned>(16 * warp + g), slot = i * kRows + static_cast<unsigned>(16 * warp + g);
        RowFragments<kDim> f;
        float square[2] = {};
        if (some) {
#pragma unroll
          for (int r = 0; r < 2; ++r) {
            const auto* from = x + std::uint64_t{min(row + 8u * static_cast<unsigned>(r), rows - 1)} * kDim;
#pragma unroll
            for (int c = 0; c < kDim / 32; ++c) {
              const uint4 v = __ldcg(reinterpret_cast<const uint4*>(from + 32 * c));
              f[2 * c][r] = v.x, f[2 * c][2 + r] = v.y, f[2 * c + 1][r] = v.z, f[2 * c + 1][2 + r] = v.w;
            }
          }
          if (pass == 0) {
            fragment_squares(square, f);
            if (t < 2) squares[slot + 8 * static_cast<unsigned>(t)] = odd ? square[1] : square[0];
          } else {
            square[0] = squares[slot], square[1] = squares[slot + 8];
          }
        }
        // Warpgroups take turns at the tensor cores: while one multiplies, the others code and load.
        if (group != 0 || batch != blockIdx.x || pass != 0 || round != 0) named_barrier_sync(1 + group, 256);
        float y[kHalf / 2];
        if (some) {
          wgmma_begin();
#pragma unroll
          for (int s = 0; s < 2 * kDim / 16; ++s)
            wgmma_registers_rows(y, f[s % (kDim / 16)],  // the smaller part first: sums are cut off less
                                 wgmma_further(operand, static_cast<std::uint32_t>((s / 4 ^ 4) * kPieceBytes + s % 4 * 32)), s != 0);
          wgmma_commit();
          wgmma_wait<0>();
          settle(y);
        }
        const bool last = batch + kBatch * gridDim.x >= tiles && pass == 1 && round + kGroups >= mine;
        if (!(last && group == kGroups - 1)) named_barrier_arrive(1 + (group + 1) % kGroups, 256);
        if (!some) continue;
        if (i + kGroups < mine) {  // what comes next is near when these rows are coded
#pragma unroll
          for (int r = 0; r < 2; ++r)
            prefetch_l2(static_cast<const std::uint16_t*>(a.x) +
                        std::uint64_t{min(row + kGroups * gridDim.x * kRows + 8u * static_cast<unsigned>(r), rows - 1)} * kDim + 64 * t);
        }
        LaneWork<32> work[2];
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          work[r] = look_up_codes<32>(
              table, [&](int j) { return y[4 * (j / 2) + 2 * r + j % 2]; }, row_norm(square[r], 1.0f).inverse * kCodeCellScale);
          LaneCodes<32> codes;
          take_codes(codes, work[r], a.codec.bits);
          const unsigned at = row + 8u * static_cast<unsigned>(r);
          if (at < rows)
            put_aligned(a.out.codes + std::uint64_t{at} * static_cast<unsigned>(a.codec.code_bytes) + (8 * t + 4 * half) * a.codec.bits,
                        codes.low, codes.high, a.codec.bits);
        }
        const float dot = sum_two(work[0].dot, work[1].dot, odd), centroids = sum_two(work[0].centroids, work[1].centroids, odd);
        if (t < 2) {
          const unsigned at = row + 8u * static_cast<unsigned>(t);
          float2& first = sums[slot + 8 * static_cast<unsigned>(t)];
          if (pass == 0) {
            first = make_float2(dot, centroids);
          } else {
            const float scale = row_scale(a.codec, row_norm(odd ? square[1] : square[0], 1.0f), dot + first.x, centroids + first.y, 1.0f);
            if (at < rows) a.out.scale[at] = scale;
          }
        }
        __syncwarp();
      }
    }
  }
}

}  // namespace

bool wide_rows_serve(const WideRowsArgs& a, const DeviceInfo& device) {
  const RowCodec& r = a.codec;
  const auto aligned = [](const void* address) { return reinterpret_cast<std::uintptr_t>(address) % 16 == 0; };
  return device.compute_major == 9 && kShared <= device.shared_bytes_per_block && r.dim == kDim &&
         r.kind == static_cast<int>(CodeKind::Mse) && r.t.code_cells && r.t.forward_image && r.t.image_parts == 2 && !r.t.pair_points &&
         !r.t.per_head && !r.t.centre && !r.t.rope_mu && r.has_scale && !r.peer_norm && a.rows >= std::int64_t{kRows} * device.sm_count &&
         a.rows < (std::int64_t{1} << 31) - (1 << 20) && aligned(a.x) && aligned(a.out.codes);
}

void launch_wide_rows(const char* what, const WideRowsArgs& a, const DeviceInfo& device, cudaStream_t stream) {
  allow_shared(wide_rows, kShared, device.shared_bytes_per_block, what);
  launch_kernel_early(what, {dim3(static_cast<unsigned>(device.sm_count)), kThreads, kShared, stream}, wide_rows, a);
}

}  // namespace tq4::gpu
