// Times prefill of new tokens behind a paged prefix (chunked prefill), and without one: a graph of 4 calls, the median of 11 launches. Prints every
// sample and a hash of the output, by which two versions of the library compare. 32 query and 8 key heads of 128, codec tq4, native pages, fp16.
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

#include "tq4/layout.h"
#include "tq4/prefill.h"

namespace {

using namespace tq4;
using namespace tq4::gpu;

void ok(cudaError_t status) {
  if (status == cudaSuccess) return;
  std::fprintf(stderr, "%s\n", cudaGetErrorString(status));
  std::exit(1);
}
void* memory(std::size_t bytes) {
  void* p = nullptr;
  ok(cudaMalloc(&p, std::max<std::size_t>(bytes, 16)));
  return p;
}
/// On the device, until the program ends.
template <class T>
T* put(const std::vector<T>& values) {
  void* p = memory(values.size() * sizeof(T));
  ok(cudaMemcpy(p, values.data(), values.size() * sizeof(T), cudaMemcpyHostToDevice));
  return static_cast<T*>(p);
}

struct Shape {
  int prefix, tokens, sequences;
};

void measure(const Shape& shape, RotationKind rotation) {
  constexpr int kHeads = 8, kQueryHeads = 32, kDim = 128, kBlock = 16, kCalls = 4;
  CodecSpec spec = spec_from_name("tq4");
  spec.k.rotation = spec.v.rotation = rotation;
  const DeviceCodec codec(spec, kDim, kHeads);
  const PageLayout layout = make_layout(LayoutKind::Native, spec, kHeads, kDim, kBlock);
  std::mt19937 random(1);
  const auto halves = [&](std::size_t n) {  // of size 1/8 to 1
    std::vector<std::uint16_t> v(n);
    for (auto& x : v) x = static_cast<std::uint16_t>(0x3000 + random() % 0x0c00 + (random() & 1) * 0x8000);
    return v;
  };
  const auto sequences = static_cast<std::size_t>(shape.sequences), prefix = static_cast<std::size_t>(shape.prefix),
             total = sequences * static_cast<std::size_t>(shape.tokens);
  const int pages_each = shape.prefix / kBlock, pages = std::max(1, pages_each * shape.sequences);
  const PagedCache cache{layout, static_cast<std::uint8_t*>(memory(static_cast<std::size_t>(layout.block_stride * pages))), pages};
  PrefillParams p;
  if (prefix > 0) {
    std::vector<std::int64_t> slots(prefix * sequences);
    for (std::size_t i = 0; i < slots.size(); ++i) slots[i] = static_cast<std::int64_t>(i);
    std::vector<std::int32_t> table(static_cast<std::size_t>(pages));
    for (int i = 0; i < pages; ++i) table[static_cast<std::size_t>(i)] = i;
    StoreParams s;
    s.k = s.v = put(halves(slots.size() * kHeads * kDim));
    s.n = static_cast<std::int64_t>(slots.size());
    s.slot_mapping = put(slots);
    s.cache = cache;
    store(codec, s, nullptr);
    p.cache = cache;
    p.block_table = put(table);
    p.block_table_stride = pages_each;
    p.prefix_lens = put(std::vector<std::int32_t>(sequences, shape.prefix));
  }
  std::vector<std::int32_t> cu{0};
  for (int i = 0; i < shape.sequences; ++i) cu.push_back(cu.back() + shape.tokens);
  p.q = put(halves(total * kQueryHeads * kDim));
  p.dtype = DType::F16;
  p.out = memory(total * kQueryHeads * kDim * 2);
  p.num_seqs = shape.sequences;
  p.cu_q = put(cu);
  p.max_q_len = shape.tokens;
  p.max_kv_len = shape.prefix + shape.tokens;
  p.num_q_heads = kQueryHeads;
  p.k_new = put(halves(total * kHeads * kDim));
  p.v_new = put(halves(total * kHeads * kDim));
  p.causal = true;
  p.workspace_bytes = prefill_workspace_bytes(codec, p);
  p.workspace = memory(p.workspace_bytes);

  cudaStream_t stream = nullptr;
  ok(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  ok(cudaDeviceSynchronize());
  prefill(codec, p, stream);
  ok(cudaStreamSynchronize(stream));
  std::vector<std::uint16_t> out(total * kQueryHeads * kDim);
  ok(cudaMemcpy(out.data(), p.out, out.size() * 2, cudaMemcpyDeviceToHost));
  unsigned long long hash = 1469598103934665603ull;
  for (const std::uint16_t x : out) hash = (hash ^ x) * 1099511628211ull;

  cudaGraph_t graph = nullptr;
  cudaGraphExec_t exec = nullptr;
  ok(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  for (int i = 0; i < kCalls; ++i) prefill(codec, p, stream);
  ok(cudaStreamEndCapture(stream, &graph));
  ok(cudaGraphInstantiate(&exec, graph, 0));
  cudaEvent_t begin = nullptr, end = nullptr;
  ok(cudaEventCreate(&begin));
  ok(cudaEventCreate(&end));
  std::vector<float> us;
  for (int i = -2; i < 11; ++i) {
    ok(cudaEventRecord(begin, stream));
    ok(cudaGraphLaunch(exec, stream));
    ok(cudaEventRecord(end, stream));
    ok(cudaEventSynchronize(end));
    float ms = 0;
    ok(cudaEventElapsedTime(&ms, begin, end));
    if (i >= 0) us.push_back(ms * 1000.0f / kCalls);
  }
  std::printf("prefix %5d new %5d sequences %d %s: samples", shape.prefix, shape.tokens, shape.sequences,
              rotation == RotationKind::Haar ? "haar" : "hadamard");
  for (const float v : us) std::printf(" %.1f", static_cast<double>(v));
  std::sort(us.begin(), us.end());
  std::printf("; median %.1f us, out %016llx\n", static_cast<double>(us[us.size() / 2]), hash);
}

}  // namespace

int main() {
  for (const Shape& shape : {Shape{8192, 512, 1}, Shape{8192, 2048, 1}, Shape{32768, 512, 1}, Shape{32768, 2048, 1}, Shape{4096, 256, 8},
                             Shape{0, 8192, 1}, Shape{0, 1024, 1}}) {
    for (const RotationKind rotation : {RotationKind::Haar, RotationKind::Hadamard}) measure(shape, rotation);
  }
  return 0;
}
