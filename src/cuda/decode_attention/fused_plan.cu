// Writes the plan of a step (fused_record.cuh): what every warp of the fused decode kernel would work out first in each of the step's launches.
#include "cuda/decode_attention/fused_launch.h"
#include "cuda/decode_attention/fused_record.cuh"
#include "cuda/launch.cuh"

namespace tq4::gpu::fused {
namespace {

constexpr int kPlanShared = kMaxPairs * kPairWords * 4 + kWarps * kRecordBytes;
__global__ void __launch_bounds__(kWarps * 32) fused_plan_kernel(const __grid_constant__ Params p, std::uint32_t* records, int max_pairs) {
  TQ4_DYNAMIC_SHARED(std::uint8_t, shared);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const std::uint32_t table = shared_address(shared);
  const Record record{table + kMaxPairs * kPairWords * 4 + warp * kRecordBytes};
  std::uint32_t* block = records + blockIdx.x * kBlockWords;
  Plan plan;
  Pair first;
  const bool work = make_plan(p, lane, __ldg(p.seq_lens + min(lane, p.num_seqs - 1)), plan, first);
  if (work) {
    record.aim(plan, plan.begin, first, lane);
    record.open(p, max_pairs, table, warp, lane);
  }
  __syncthreads();
  if (work && warp < record.word(kPairsWord) && lane == 0) place_parts(plan.length, table + warp * kPairWords * 4);
  __syncthreads();
  int id = 0;
  if (work) {
    Loader<0, 0> loader;
    record.wake(p, loader, lane);
    id = record.first_ids(p, loader, lane);
  }
  block[warp * (kRecordWords + 32) + lane] = work ? lds32(record.at + lane * 4) : 0;
  block[warp * (kRecordWords + 32) + kRecordWords + lane] = (std::uint32_t)id;
  if (work && warp < kMaxPairs * kPairWords / 32)
    block[kWarps * (kRecordWords + 32) + warp * 32 + lane] = lds32(table + (warp * 32 + lane) * 4);
}

}  // namespace

std::size_t plan_bytes(int blocks) { return static_cast<std::size_t>(blocks) * kBlockWords * sizeof(std::uint32_t); }

void launch_plan(const Params& params, int max_pairs, void* plan, int blocks, Stream stream) {
  launch_kernel("decode plan", {dim3(static_cast<unsigned>(blocks)), kWarps * 32, kPlanShared, static_cast<cudaStream_t>(stream)},
                fused_plan_kernel, params, static_cast<std::uint32_t*>(plan), max_pairs);
}

}  // namespace tq4::gpu::fused
