// The smallest engine: one layer, two sequences, a compressed paged cache. A prompt is prefilled and stored by update_and_attend, then tokens are
// decoded one at a time from a captured CUDA graph whose lengths change on the device. Prints the path taken; see docs/gpu.md.
#include <cuda_runtime.h>

#include <cstdint>
#include <cstdio>
#include <numeric>
#include <vector>

#include "tq4/error.h"
#include "tq4/prefill.h"

namespace {
template <class T>
T* device(const std::vector<T>& values) {
  void* p = nullptr;
  if (cudaMalloc(&p, values.size() * sizeof(T)) != cudaSuccess) throw tq4::Error(tq4::ErrorCode::Runtime, "out of device memory");
  cudaMemcpy(p, values.data(), values.size() * sizeof(T), cudaMemcpyHostToDevice);
  return static_cast<T*>(p);
}
}  // namespace

int main() try {
  using namespace tq4;
  constexpr int kSeqs = 2, kQHeads = 32, kKvHeads = 8, kDim = 128, kBlock = 16, kPrompt = 100, kMax = 256, kSteps = 20;
  const gpu::DeviceCodec codec(spec_from_name("k4v3"), kDim, kKvHeads);
  const PageLayout layout = make_layout(LayoutKind::Native, codec.spec(), kKvHeads, kDim, kBlock);
  constexpr int kPages = kSeqs * kMax / kBlock;
  gpu::LayerStepParams step;
  step.cache = {layout, device(std::vector<std::uint8_t>(static_cast<std::size_t>(layout.block_stride * kPages))), kPages};
  std::vector<std::int32_t> table(kPages);  // sequence s owns pages s, s + 2, s + 4, ...
  for (int i = 0; i < kPages; ++i) table[static_cast<std::size_t>(i)] = i % (kMax / kBlock) * kSeqs + i / (kMax / kBlock);
  const auto slot = [&](int s, int p) {
    return static_cast<std::int64_t>(table[static_cast<std::size_t>(s * kMax / kBlock + p / kBlock)]) * kBlock + p % kBlock;
  };
  step.block_table = device(table);
  step.block_table_stride = kMax / kBlock;
  step.num_seqs = kSeqs, step.num_q_heads = kQHeads, step.max_seq_len = kMax;
  std::vector<std::uint16_t> x(static_cast<std::size_t>(kSeqs * kPrompt * kQHeads * kDim));
  for (std::size_t i = 0; i < x.size(); ++i) x[i] = float_to_half(static_cast<float>(i * 2654435761u % 1000) / 500.0f - 1.0f);
  step.q = device(x), step.k = step.q, step.v = step.q;  // any fp16 numbers
  auto* out = device(x);
  step.out = out;

  // The prompt: many tokens a sequence.
  std::vector<std::int64_t> slots;
  for (int s = 0; s < kSeqs; ++s) {
    for (int p = 0; p < kPrompt; ++p) slots.push_back(slot(s, p));
  }
  step.total = kSeqs * kPrompt, step.max_q_len = kPrompt;
  step.cu_q = device(std::vector<std::int32_t>{0, kPrompt, 2 * kPrompt});
  auto* lengths = device(std::vector<std::int32_t>(kSeqs, kPrompt));
  step.slot_mapping = device(slots), step.seq_lens = lengths;
  step.workspace_bytes = gpu::layer_step_workspace_bytes(codec, step);
  step.workspace = device(std::vector<std::uint8_t>(step.workspace_bytes));
  std::printf("prompt: %s\n", gpu::layer_step_path(codec, step).c_str());
  gpu::update_and_attend(codec, step, nullptr);

  // Decode: capture one step, replay it while lengths and slots change.
  step.total = kSeqs, step.max_q_len = 1;
  auto* mapping = device(std::vector<std::int64_t>(kSeqs));
  step.slot_mapping = mapping;
  step.workspace_bytes = gpu::layer_step_workspace_bytes(codec, step);
  step.workspace = device(std::vector<std::uint8_t>(step.workspace_bytes));
  std::printf("step: %s\n", gpu::layer_step_path(codec, step).c_str());
  cudaStream_t stream;
  cudaGraph_t graph;
  cudaGraphExec_t exec;
  cudaStreamCreate(&stream);
  cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal);
  gpu::update_and_attend(codec, step, stream);
  cudaStreamEndCapture(stream, &graph);
  cudaGraphInstantiate(&exec, graph, 0);
  for (int t = kPrompt; t < kPrompt + kSteps; ++t) {
    const std::vector<std::int32_t> now(kSeqs, t + 1);
    const std::vector<std::int64_t> places{slot(0, t), slot(1, t)};
    cudaMemcpyAsync(lengths, now.data(), sizeof(std::int32_t) * kSeqs, cudaMemcpyHostToDevice, stream);
    cudaMemcpyAsync(mapping, places.data(), sizeof(std::int64_t) * kSeqs, cudaMemcpyHostToDevice, stream);
    cudaGraphLaunch(exec, stream);
    cudaStreamSynchronize(stream);
  }
  std::uint16_t first = 0;
  cudaMemcpy(&first, out, sizeof(first), cudaMemcpyDeviceToHost);
  std::printf("%d tokens a sequence, first output %g, %s\n", kPrompt + kSteps, static_cast<double>(half_to_float(first)),
              cudaGetErrorString(cudaGetLastError()));
  return 0;
} catch (const tq4::Error& error) {
  std::fprintf(stderr, "%s\n", error.what());
  return static_cast<int>(error.code());
}
