// Times encode, store and dequant against what bounds them: the read bandwidth of the same run, and empty kernels launched in the same ways. Every
// point is a CUDA graph of calls over buffers that together exceed the second-level cache several times; median [p10 p90] of 21 launches of the
// graph. Raw samples go to the file named by the first argument.
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "gpu/flips.h"
#include "tq4/gpu.h"
#include "tq4/layout.h"

namespace {

using namespace tq4;
using namespace tq4::gpu;

#define OK(call)                                                                                      \
  do {                                                                                                \
    const cudaError_t status = (call);                                                                \
    if (status != cudaSuccess) {                                                                      \
      std::fprintf(stderr, "%s:%d: %s: %s\n", __FILE__, __LINE__, #call, cudaGetErrorString(status)); \
      std::exit(1);                                                                                   \
    }                                                                                                 \
  } while (false)

std::FILE* raw = nullptr;
int samples = 21;
double ceiling = 0;

struct Median {
  double median, low, high;
};
Median report_samples(const std::string& name, std::vector<double> us) {
  std::fprintf(raw, "%s:", name.c_str());
  for (const double v : us) std::fprintf(raw, " %.3f", v);
  std::fprintf(raw, "\n");
  std::sort(us.begin(), us.end());
  return {us[us.size() / 2], us[us.size() / 10], us[us.size() - 1 - us.size() / 10]};
}

using Call = std::function<void(int, cudaStream_t)>;

/// One call of a graph of calls 0 .. count-1, `rounds` times, in us.
Median in_graph(const std::string& name, int count, const Call& call, int rounds = 1) {
  cudaStream_t stream;
  OK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  call(0, stream);
  OK(cudaStreamSynchronize(stream));
  cudaGraph_t graph;
  cudaGraphExec_t exec;
  OK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  for (int i = 0; i < rounds * count; ++i) call(i % count, stream);
  OK(cudaStreamEndCapture(stream, &graph));
  OK(cudaGraphInstantiate(&exec, graph, 0));
  cudaEvent_t begin, end;
  OK(cudaEventCreate(&begin));
  OK(cudaEventCreate(&end));
  std::vector<double> us;
  for (int i = -3; i < samples; ++i) {
    OK(cudaEventRecord(begin, stream));
    OK(cudaGraphLaunch(exec, stream));
    OK(cudaEventRecord(end, stream));
    OK(cudaEventSynchronize(end));
    float ms = 0;
    OK(cudaEventElapsedTime(&ms, begin, end));
    if (i >= 0) us.push_back(static_cast<double>(ms) * 1000 / (rounds * count));
  }
  OK(cudaGraphExecDestroy(exec));
  OK(cudaGraphDestroy(graph));
  OK(cudaStreamDestroy(stream));
  return report_samples(name, us);
}

/// One of 500 launches in a stream without a graph: what a program that launches kernel by kernel waits for.
Median in_stream(const std::string& name, int count, const Call& call) {
  cudaStream_t stream;
  OK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  cudaEvent_t begin, end;
  OK(cudaEventCreate(&begin));
  OK(cudaEventCreate(&end));
  std::vector<double> us;
  for (int k = -3; k < samples; ++k) {
    OK(cudaEventRecord(begin, stream));
    for (int i = 0; i < 500; ++i) call(i % count, stream);
    OK(cudaEventRecord(end, stream));
    OK(cudaEventSynchronize(end));
    float ms = 0;
    OK(cudaEventElapsedTime(&ms, begin, end));
    if (k >= 0) us.push_back(static_cast<double>(ms) * 1000 / 500);
  }
  OK(cudaStreamDestroy(stream));
  return report_samples(name, us);
}

struct Memory {
  explicit Memory(std::size_t bytes) { OK(cudaMalloc(&data, std::max<std::size_t>(bytes, 16))); }
  ~Memory() { cudaFree(data); }
  Memory(const Memory&) = delete;
  template <class T>
  T* as() const {
    return static_cast<T*>(data);
  }
  void* data = nullptr;
};

__global__ void empty_kernel() {}
/// What the library's kernels do first (nothing before sm_90).
__device__ __forceinline__ void begin_early() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
__global__ void normal_kernel(void* x, int dtype, std::size_t n, unsigned seed) {
  for (std::size_t i = blockIdx.x * static_cast<std::size_t>(blockDim.x) + threadIdx.x; i < n;
       i += static_cast<std::size_t>(gridDim.x) * blockDim.x) {
    std::uint64_t h = (i + 1) * 0x9e3779b97f4a7c15ull + seed * 0xbf58476d1ce4e5b9ull;
    h = (h ^ h >> 30) * 0xbf58476d1ce4e5b9ull, h = (h ^ h >> 27) * 0x94d049bb133111ebull, h ^= h >> 31;
    const float u = (static_cast<float>(static_cast<unsigned>(h) >> 8) + 0.5f) * 0x1p-24f,
                v = static_cast<float>(static_cast<unsigned>(h >> 32)) * 0x1p-31f;
    const float f = sqrtf(-2.0f * logf(u)) * cospif(v);
    if (dtype == 2) {
      static_cast<float*>(x)[i] = f;
    } else if (dtype == 1) {
      static_cast<unsigned short*>(x)[i] = static_cast<unsigned short>(__float_as_uint(f) >> 16);
    } else {
      static_cast<__half*>(x)[i] = __float2half_rn(f);
    }
  }
}
__global__ void __launch_bounds__(512) read_kernel(const uint4* from, std::size_t count, unsigned* sink) {
  const std::size_t step = static_cast<std::size_t>(gridDim.x) * blockDim.x;
  unsigned sum = 0;
  for (std::size_t i = blockIdx.x * static_cast<std::size_t>(blockDim.x) + threadIdx.x; i + 7 * step < count; i += 8 * step) {
    uint4 v[8];
#pragma unroll
    for (int k = 0; k < 8; ++k) v[k] = __ldcs(from + i + k * step);
#pragma unroll
    for (int k = 0; k < 8; ++k) sum ^= v[k].x ^ v[k].y ^ v[k].z ^ v[k].w;
  }
  if (sum == 0x9e3779b9u) *sink = sum;
}
/// Reads `in` 16-byte pieces for every `out` written, 4 at most, as coalesced as it gets.
__global__ void __launch_bounds__(256) mixed_kernel(const uint4* from, uint4* to, std::size_t pieces, int in, int out) {
  const std::size_t step = static_cast<std::size_t>(gridDim.x) * blockDim.x;
  for (std::size_t i = blockIdx.x * static_cast<std::size_t>(blockDim.x) + threadIdx.x; i < pieces; i += step) {
    uint4 v[4];
#pragma unroll
    for (int k = 0; k < 4; ++k) v[k] = __ldcs(from + (k < in ? k : 0) * pieces + i);
    v[0].x ^= v[1].x ^ v[2].y ^ v[3].z;
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      if (k < out) __stcs(to + k * pieces + i, v[k]);
    }
  }
}
/// What a kernel reaches that only moves `read` and `written` bytes: a thread reads and writes 16-byte pieces in turn, 4 of the larger at a time.
/// Early: it begins while the one ahead of it ends, as the library's kernels do.
template <int In, int Out>
__global__ void __launch_bounds__(256) plain_kernel(const uint4* from, uint4* to, unsigned pieces) {
  begin_early();
  const unsigned warps = gridDim.x * 8, lane = threadIdx.x % 32;
  for (unsigned w = blockIdx.x * 8 + threadIdx.x / 32; w < pieces / 32; w += warps) {
    uint4 v[In];
#pragma unroll
    for (int k = 0; k < In; ++k) v[k] = __ldcs(from + (static_cast<std::size_t>(w) * In + k) * 32 + lane);
    uint4 x = v[0];
#pragma unroll
    for (int k = 1; k < In; ++k) x.x ^= v[k].x, x.y ^= v[k].y, x.z ^= v[k].z, x.w ^= v[k].w;
#pragma unroll
    for (int k = 0; k < Out; ++k) __stcs(to + (static_cast<std::size_t>(w) * Out + k) * 32 + lane, make_uint4(x.x + k, x.y, x.z, x.w));
  }
}
template <class... Params, class... Args>
void launch(bool early, dim3 grid, int threads, cudaStream_t stream, void (*kernel)(Params...), Args... args) {
  cudaLaunchAttribute overlap{};
  overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  overlap.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.stream = stream;
  config.attrs = &overlap;
  config.numAttrs = early ? 1 : 0;
  OK(cudaLaunchKernelEx(&config, kernel, args...));
}
template <int In, int Out>
void plain_floor() {
  constexpr std::size_t kSmall = std::size_t{262144} * 64, kLarge = kSmall * 4;  // bytes of codes and of fp16 rows of 262,144 times 128
  std::vector<std::unique_ptr<Memory>> from, to;
  for (int i = 0; i < 4; ++i) {
    from.push_back(std::make_unique<Memory>(In > Out ? kLarge : kSmall));
    to.push_back(std::make_unique<Memory>(In > Out ? kSmall : kLarge));
  }
  for (const bool early : {false, true}) {
    for (const int blocks : {0, 8}) {
      const unsigned pieces = kSmall / 16, grid = blocks == 0 ? pieces / 256 : device_info(0).sm_count * static_cast<unsigned>(blocks);
      char name[80];
      std::snprintf(name, sizeof name, "plain %d:%d %s %u blocks", In, Out, early ? "early" : "in turn", grid);
      const Median m = in_graph(name, 12, [&](int i, cudaStream_t stream) {
        launch(early, grid, 256, stream, plain_kernel<In, Out>, static_cast<const uint4*>(from[i % 4]->data),
               static_cast<uint4*>(to[i % 4]->data), pieces);
      });
      std::printf("%-40s %6.2f [%.2f %.2f] us for %.1f MB: %.0f GB/s\n", name, m.median, m.low, m.high, (kSmall + kLarge) * 1e-6,
                  (kSmall + kLarge) / m.median * 1e-3);
    }
  }
}
void fill(const Memory& m, DType dtype, std::size_t n, unsigned seed) {
  normal_kernel<<<1024, 256>>>(m.data, dtype == DType::F32 ? 2 : dtype == DType::BF16 ? 1 : 0, n, seed);
  OK(cudaDeviceSynchronize());
}

/// What a store cannot do without: after the wait, a row's slot and 16 bytes of x a thread, then 4 bytes of the slot's page. No arithmetic.
__global__ void __launch_bounds__(256) touch_kernel(const uint4* k, const uint4* v, const long long* slots, unsigned char* pages,
                                                    long long block_stride, int heads, int block_size) {
  begin_early();
  const unsigned row = blockIdx.x * 16 + threadIdx.x / 16, head = row % static_cast<unsigned>(heads);
  const long long slot = __ldg(slots + row / static_cast<unsigned>(heads));
  const uint4 x = __ldcs((blockIdx.z == 0 ? k : v) + row * 16 + threadIdx.x % 16);
  unsigned char* to = pages + slot / block_size * block_stride + ((blockIdx.z * heads + head) * block_size + slot % block_size) * 64;
  reinterpret_cast<unsigned*>(to)[threadIdx.x % 16] = x.x ^ x.y ^ x.z ^ x.w;
}

CodecSpec spec_of(const char* name, RotationKind rotation) {
  CodecSpec spec = spec_from_name(name);
  if (rotation == RotationKind::None) return spec;  // the codec's own
  for (SideSpec* side : {&spec.k, &spec.v}) {
    if (side->rotation != RotationKind::None || spec.k.rotation == spec.v.rotation) side->rotation = rotation;
  }
  return spec;
}
const char* name_of(RotationKind k) {
  return k == RotationKind::None ? "own" : k == RotationKind::Haar ? "haar" : k == RotationKind::Hadamard ? "hadamard" : "hadamard+-";
}

enum class Path { Tensor, Single, Sequential };

void planes(const char* codec_name, RotationKind rotation, int dim, DType dtype, std::int64_t n, int heads, Path path, bool flips) {
  const DeviceCodec codec(spec_of(codec_name, rotation), dim, heads);
  const Codec& host = codec.host(Side::K);
  const std::size_t rows = static_cast<std::size_t>(n) * static_cast<std::size_t>(heads), elements = rows * static_cast<std::size_t>(dim);
  const double encode_bytes = static_cast<double>(elements * dtype_size(dtype) + rows * (host.code_bytes() + 4));
  const int sets = static_cast<int>(std::clamp(240e6 / encode_bytes + 1, 3.0, 24.0));
  std::vector<std::unique_ptr<Memory>> x, codes, scale;
  for (int i = 0; i < sets; ++i) {
    x.push_back(std::make_unique<Memory>(elements * dtype_size(dtype)));
    codes.push_back(std::make_unique<Memory>(rows * host.code_bytes()));
    scale.push_back(std::make_unique<Memory>(rows * 4));
    fill(*x.back(), dtype, elements, static_cast<unsigned>(i));
  }
  const auto run = [&](int i, cudaStream_t stream) {
    EncodeParams p;
    p.x = x[static_cast<std::size_t>(i)]->data;
    p.x_dtype = dtype;
    p.n = n;
    p.heads = heads;
    p.out = {codes[static_cast<std::size_t>(i)]->as<std::uint8_t>(), scale[static_cast<std::size_t>(i)]->as<float>(), nullptr, nullptr,
             nullptr};
    p.sequential = path == Path::Sequential;
    p.single_fp16_rotation = path == Path::Single;
    encode(codec, Side::K, p, stream);
  };
  const char* path_name = path == Path::Tensor ? "tensor" : path == Path::Single ? "single" : "sequential";
  char name[160];
  std::snprintf(name, sizeof name, "encode %s %s d%d %s %lld rows %s", codec_name, name_of(rotation), dim,
                std::string(dtype_name(dtype)).c_str(), static_cast<long long>(rows), path_name);
  // A graph of 12 calls or more, as those of plain_floor(); of one round of the sets, too, whose launch a call shares with only a few others.
  const Median t = in_graph(name, sets, run, (11 + sets) / sets), few = in_graph(std::string(name) + " one round", sets, run);
  std::printf("%-62s %8.2f us [%.2f %.2f] %6.0f GB/s %5.1f%%  graph of %d: %.2f us %.1f%%\n", name, t.median, t.low, t.high,
              encode_bytes / t.median * 1e-3, 100 * encode_bytes / t.median * 1e6 / ceiling, sets, few.median,
              100 * encode_bytes / few.median * 1e6 / ceiling);
  if (flips) {
    std::vector<std::uint8_t> bytes(elements * dtype_size(dtype)), got(rows * host.code_bytes()), want(got.size());
    std::vector<float> got_scale(rows), want_scale(rows), floats(elements);
    OK(cudaMemcpy(bytes.data(), x[0]->data, bytes.size(), cudaMemcpyDeviceToHost));
    OK(cudaMemcpy(got.data(), codes[0]->data, got.size(), cudaMemcpyDeviceToHost));
    OK(cudaMemcpy(got_scale.data(), scale[0]->data, rows * 4, cudaMemcpyDeviceToHost));
    to_float(bytes.data(), dtype, elements, floats.data());
    Exec exec;
    exec.threads = 0;
    host.encode(bytes.data(), dtype, static_cast<std::int64_t>(rows), {want.data(), want_scale.data(), nullptr, nullptr, nullptr}, {},
                exec);
    const Flips f = count_flips(host, {}, floats.data(), rows, {want.data(), want_scale.data(), nullptr, nullptr, nullptr},
                                {got.data(), got_scale.data(), nullptr, nullptr, nullptr}, path == Path::Single ? 3e-4 : 1e-5);
    std::printf("    against the CPU: %zu of %zu codes flipped (at most %.1e from a boundary), %zu of %zu scales differ, wrong: %zu\n",
                f.codes, elements, f.farthest, f.scales, rows, f.wrong);
  }
  std::fflush(stdout);
}

void rows_back(const char* codec_name, RotationKind rotation, int dim, DType dtype, std::int64_t n, int heads, bool rotated,
               bool sequential) {
  const DeviceCodec codec(spec_of(codec_name, rotation), dim, heads);
  const Codec& host = codec.host(Side::K);
  const std::size_t rows = static_cast<std::size_t>(n) * static_cast<std::size_t>(heads), elements = rows * static_cast<std::size_t>(dim);
  const double bytes = static_cast<double>(elements * dtype_size(dtype) + rows * (host.code_bytes() + 4));
  const int sets = static_cast<int>(std::clamp(240e6 / bytes + 1, 3.0, 24.0));
  std::vector<std::unique_ptr<Memory>> x, codes, scale;
  for (int i = 0; i < sets; ++i) {
    x.push_back(std::make_unique<Memory>(elements * dtype_size(dtype)));
    codes.push_back(std::make_unique<Memory>(rows * host.code_bytes()));
    scale.push_back(std::make_unique<Memory>(rows * 4));
    fill(*x.back(), dtype, elements, static_cast<unsigned>(i));
    EncodeParams p;
    p.x = x.back()->data;
    p.x_dtype = dtype;
    p.n = n;
    p.heads = heads;
    p.out = {codes.back()->as<std::uint8_t>(), scale.back()->as<float>(), nullptr, nullptr, nullptr};
    encode(codec, Side::K, p, nullptr);
  }
  OK(cudaDeviceSynchronize());
  char name[160];
  std::snprintf(name, sizeof name, "dequant %s %s d%d %s %lld rows %s%s", codec_name, name_of(rotation), dim,
                std::string(dtype_name(dtype)).c_str(), static_cast<long long>(rows), rotated ? "rotated" : "original",
                sequential ? " sequential" : "");
  const Median t = in_graph(name, std::max(sets, 12), [&](int call, cudaStream_t stream) {
    const int i = call % sets;
    DequantParams p;
    p.in = {codes[static_cast<std::size_t>(i)]->as<std::uint8_t>(), scale[static_cast<std::size_t>(i)]->as<float>(), nullptr, nullptr,
            nullptr};
    p.n = n;
    p.heads = heads;
    p.out = x[static_cast<std::size_t>(i)]->data;
    p.out_dtype = dtype;
    p.rotated = rotated;
    p.sequential = sequential;
    dequant(codec, Side::K, p, stream);
  });
  std::printf("%-62s %8.2f us [%.2f %.2f] %6.0f GB/s %5.1f%%\n", name, t.median, t.low, t.high, bytes / t.median * 1e-3,
              100 * bytes / t.median * 1e6 / ceiling);
  std::fflush(stdout);
}

/// A layout by name: "native", "turboquant-vllm", "padded" (turboquant-vllm's plugin), "vllm", "swapped" (vLLM's with heads outside of tokens).
PageLayout layout_of(const std::string& name, const CodecSpec& spec, int heads, int dim, int block_size) {
  if (name == "padded") return padded_turboquant_vllm_layout(spec, heads, dim, block_size);
  PageLayout layout = make_layout(layout_from_name(name == "swapped" ? "vllm" : name), spec, heads, dim, block_size);
  if (name == "swapped") {
    layout.token_stride = layout.head_stride;
    layout.head_stride = layout.token_stride * block_size;
  }
  return layout;
}

/// All tokens of `batch` sequences of `ctx` to permuted pages by one store, and back to dense K and V. Bytes: rows and what attention reads of a page.
void all_pages(const char* codec_name, RotationKind rotation, const std::string& layout_name, int dim, int batch, int ctx) {
  constexpr int kHeads = 8, kBlockSize = 16, kSets = 3;
  const CodecSpec spec = spec_of(codec_name, rotation);
  const DeviceCodec codec(spec, dim, kHeads);
  const PageLayout layout = layout_of(layout_name, spec, kHeads, dim, kBlockSize);
  const std::int64_t n = static_cast<std::int64_t>(batch) * ctx, pages = n / kBlockSize;
  std::vector<std::int32_t> table(static_cast<std::size_t>(pages)), lengths(static_cast<std::size_t>(batch), ctx);
  std::iota(table.begin(), table.end(), 0);
  std::shuffle(table.begin(), table.end(), std::mt19937_64(5));
  std::vector<std::int64_t> slots(static_cast<std::size_t>(n));
  for (std::size_t i = 0; i < slots.size(); ++i)
    slots[i] = table[i / kBlockSize] * std::int64_t{kBlockSize} + static_cast<std::int64_t>(i % kBlockSize);
  const Memory block_table(table.size() * 4), seq_lens(lengths.size() * 4), slot_mapping(slots.size() * 8);
  OK(cudaMemcpy(block_table.data, table.data(), table.size() * 4, cudaMemcpyHostToDevice));
  OK(cudaMemcpy(seq_lens.data, lengths.data(), lengths.size() * 4, cudaMemcpyHostToDevice));
  OK(cudaMemcpy(slot_mapping.data, slots.data(), slots.size() * 8, cudaMemcpyHostToDevice));
  const std::size_t elements = static_cast<std::size_t>(n * kHeads * dim);
  std::vector<std::unique_ptr<Memory>> caches, k, v;
  for (int i = 0; i < kSets; ++i) {
    caches.push_back(std::make_unique<Memory>(static_cast<std::size_t>(pages * layout.block_stride)));
    k.push_back(std::make_unique<Memory>(elements * 2));
    v.push_back(std::make_unique<Memory>(elements * 2));
    fill(*k.back(), DType::F16, elements, static_cast<unsigned>(2 * i));
    fill(*v.back(), DType::F16, elements, static_cast<unsigned>(2 * i + 1));
  }
  const double bytes = static_cast<double>(4 * elements) + static_cast<double>(n * kHeads * token_head_bytes(layout));
  const auto print = [&](const std::string& name, const Median& t) {
    std::printf("%-66s %8.2f us [%.2f %.2f] %6.0f GB/s %5.1f%%\n", name.c_str(), t.median, t.low, t.high, bytes / t.median * 1e-3,
                100 * bytes / t.median * 1e6 / ceiling);
    std::fflush(stdout);
  };
  const std::string shape = std::string(codec_name) + " " + name_of(rotation) + " " + layout_name + " d" + std::to_string(dim) + " " +
                            std::to_string(2 * n * kHeads) + " rows";
  const auto place = [&](int i) { return PagedCache{layout, caches[static_cast<std::size_t>(i)]->as<std::uint8_t>(), pages}; };
  print("store " + shape, in_graph(
                              "store " + shape, kSets,
                              [&](int i, cudaStream_t stream) {
                                StoreParams p;
                                p.k = k[static_cast<std::size_t>(i)]->data;
                                p.v = v[static_cast<std::size_t>(i)]->data;
                                p.n = n;
                                p.slot_mapping = slot_mapping.as<std::int64_t>();
                                p.cache = place(i);
                                store(codec, p, stream);
                              },
                              4));
  for (const bool rotated : {false, true}) {
    const std::string name = "dequant_pages " + shape + (rotated ? " rotated" : " original");
    print(name, in_graph(
                    name, kSets,
                    [&](int i, cudaStream_t stream) {
                      DequantPagesParams p;
                      p.cache = place(i);
                      p.block_table = block_table.as<std::int32_t>();
                      p.block_table_stride = ctx / kBlockSize;
                      p.seq_lens = seq_lens.as<std::int32_t>();
                      p.num_seqs = batch;
                      p.max_seq_len = ctx;
                      p.k_out = k[static_cast<std::size_t>(i)]->data;
                      p.v_out = v[static_cast<std::size_t>(i)]->data;
                      p.rotated = rotated;
                      dequant_pages(codec, p, stream);
                    },
                    4));
  }
}

/// A step's tokens into 64 caches in turn (cold pages), alone and behind an empty kernel, which is no early launch.
void step(const char* codec_name, RotationKind rotation, int dim, int batch, bool sequential, const std::string& layout_name = "native",
          bool touch_too = false) {
  constexpr int kHeads = 8, kCaches = 64, kBlockSize = 16;
  const CodecSpec spec = spec_of(codec_name, rotation);
  const DeviceCodec codec(spec, dim, kHeads);
  const PageLayout layout = layout_of(layout_name, spec, kHeads, dim, kBlockSize);
  const std::int64_t pages = batch * 64;
  std::mt19937_64 random(3);
  const std::size_t elements = static_cast<std::size_t>(batch * kHeads * dim);
  std::vector<std::unique_ptr<Memory>> caches, slots, k, v;
  for (int i = 0; i < kCaches; ++i) {
    caches.push_back(std::make_unique<Memory>(static_cast<std::size_t>(pages * layout.block_stride)));
    std::vector<std::int64_t> to(static_cast<std::size_t>(batch));
    for (auto& s : to) s = static_cast<std::int64_t>(random() % static_cast<std::uint64_t>(pages * kBlockSize));
    slots.push_back(std::make_unique<Memory>(to.size() * 8));
    OK(cudaMemcpy(slots.back()->data, to.data(), to.size() * 8, cudaMemcpyHostToDevice));
    k.push_back(std::make_unique<Memory>(elements * 2));
    v.push_back(std::make_unique<Memory>(elements * 2));
    fill(*k.back(), DType::F16, elements, 1);
    fill(*v.back(), DType::F16, elements, 2);
  }
  const auto run = [&](int i, cudaStream_t stream) {
    StoreParams p;
    const auto at = static_cast<std::size_t>(i);
    p.k = k[at]->data;
    p.v = v[at]->data;
    p.n = batch;
    p.slot_mapping = slots[at]->as<std::int64_t>();
    p.cache = {layout, caches[at]->as<std::uint8_t>(), pages};
    p.sequential = sequential;
    store(codec, p, stream);
  };
  char name[160];
  std::snprintf(name, sizeof name, "store %s %s%s%s d%d batch %d%s", codec_name, name_of(rotation), layout_name == "native" ? "" : " ",
                layout_name == "native" ? "" : layout_name.c_str(), dim, batch, sequential ? " sequential" : "");
  const std::string n = name;
  if (touch_too) {
    const Median m = in_graph(n + " touch", kCaches, [&](int i, cudaStream_t stream) {
      const auto at = static_cast<std::size_t>(i);
      launch(true, dim3(static_cast<unsigned>(batch * kHeads / 16), 1, 2), 256, stream, touch_kernel,
             static_cast<const uint4*>(k[at]->data), static_cast<const uint4*>(v[at]->data), slots[at]->as<const long long>(),
             caches[at]->as<unsigned char>(), static_cast<long long>(layout.block_stride), kHeads, kBlockSize);
    });
    std::printf("%-48s chain %6.2f [%.2f %.2f] us\n", "a kernel that reads a store's x and slots and writes as much", m.median, m.low,
                m.high);
  }
  const Median chain = in_graph(n + " chain", kCaches, run);
  const Median behind = in_graph(n + " behind empty", kCaches, [&](int i, cudaStream_t stream) {
    empty_kernel<<<dim3(16, 1, 2), 256, 0, stream>>>();
    run(i, stream);
  });
  const Median one = in_graph(n + " one node", 1, [&](int, cudaStream_t stream) { run(5, stream); });
  const Median plain = in_stream(n + " stream", kCaches, run);
  std::printf(
      "%-48s chain %6.2f [%.2f %.2f]  empty+store pair %6.2f [%.2f %.2f]  graph of one %6.2f [%.2f %.2f]  stream %6.2f [%.2f %.2f] us\n",
      name, chain.median, chain.low, chain.high, behind.median, behind.low, behind.high, one.median, one.low, one.high, plain.median,
      plain.low, plain.high);
  std::fflush(stdout);
}

void empty(dim3 grid, int threads, std::size_t shared) {
  const auto run = [&](int, cudaStream_t stream) { empty_kernel<<<grid, threads, shared, stream>>>(); };
  char name[80];
  std::snprintf(name, sizeof name, "empty %ux%ux%u blocks of %d, %zu B", grid.x, grid.y, grid.z, threads, shared);
  const std::string n = name;
  const Median chain = in_graph(n + " chain", 64, run), one = in_graph(n + " one node", 1, run), plain = in_stream(n + " stream", 64, run);
  const Median pair = in_graph(n + " pair", 64, [&](int, cudaStream_t stream) {
    empty_kernel<<<dim3(16, 1, 2), 256, 0, stream>>>();
    run(0, stream);
  });
  std::printf(
      "%-48s chain %6.2f [%.2f %.2f]  empty+empty pair %6.2f [%.2f %.2f]  graph of one %6.2f [%.2f %.2f]  stream %6.2f [%.2f %.2f] us\n",
      name, chain.median, chain.low, chain.high, pair.median, pair.low, pair.high, one.median, one.low, one.high, plain.median, plain.low,
      plain.high);
}

}  // namespace

int main(int argc, char** argv) {
  if (device_count() == 0) {
    std::puts("no CUDA device is visible");
    return 5;
  }
  raw = std::fopen(argc > 1 ? argv[1] : "samples.txt", "w");
  if (argc > 2 && std::strcmp(argv[2], "one") == 0) {  // a launch of each kernel, for a profiler
    ceiling = 1;
    samples = 1;
    for (const RotationKind r : {RotationKind::Haar, RotationKind::Hadamard})
      planes("tq4", r, 128, DType::F16, 32768, 8, Path::Tensor, false);
    rows_back("tq4", RotationKind::Haar, 128, DType::F16, 32768, 8, false, false);
    rows_back("tq4", RotationKind::Haar, 128, DType::F16, 32768, 8, true, false);
    step("tq4", RotationKind::Haar, 128, 32, false);
    return 0;
  }
  const bool variant = argc > 2 && std::strcmp(argv[2], "variant") == 0;
  if (variant) {
    ceiling = 4540e9;
    const std::string what = argc > 3 ? argv[3] : "encode";
    if (what == "encode") {
      for (const RotationKind r : {RotationKind::Hadamard, RotationKind::Haar})
        planes("tq4", r, 128, DType::F16, 32768, 8, Path::Tensor, true);
      planes("tq4", RotationKind::Hadamard, 128, DType::F32, 32768, 8, Path::Tensor, false);
    } else if (what == "rotated") {
      rows_back("tq4", RotationKind::Haar, 128, DType::F16, 32768, 8, true, false);
      rows_back("tq3", RotationKind::Haar, 128, DType::F16, 32768, 8, true, false);
    } else if (what == "back") {
      rows_back("tq4", RotationKind::Hadamard, 128, DType::F16, 32768, 8, false, false);
      rows_back("tq4", RotationKind::Hadamard, 128, DType::F32, 32768, 8, false, false);
    } else if (what == "inverse") {
      rows_back("tq4", RotationKind::Haar, 128, DType::F16, 32768, 8, false, false);
    } else {
      for (const char* codec : {"k8v4", "vllm:4bit_nc"}) planes(codec, RotationKind::None, 128, DType::F16, 32768, 8, Path::Tensor, false);
      step("tq4", RotationKind::Haar, 128, 32, false, "native", true);
      for (const RotationKind r : {RotationKind::Haar, RotationKind::Hadamard}) {
        for (const int dim : {64, 128, 256}) step("tq4", r, dim, 32, false);
      }
      for (const char* codec : {"k4v3", "tq3", "k8v4"}) step(codec, RotationKind::Hadamard, 128, 32, false);
      for (const char* codec : {"vllm:k8v4", "vllm:4bit_nc", "vllm:k3v4_nc", "vllm:3bit_nc"})
        step(codec, RotationKind::None, 128, 32, false, "vllm");
      step("turboquant-vllm", RotationKind::None, 128, 32, false, "turboquant-vllm");
    }
    return 0;
  }
  const bool quick = argc > 2 && std::strcmp(argv[2], "quick") == 0, back = argc > 2 && std::strcmp(argv[2], "dequant") == 0,
             forward = argc > 2 && std::strcmp(argv[2], "encode") == 0, pages = argc > 2 && std::strcmp(argv[2], "pages") == 0;
  {
    const std::size_t bytes = std::size_t{4} << 30;
    const Memory memory(bytes), sink(16);
    fill(memory, DType::F16, bytes / 2, 9);
    const Median t = in_graph("read 4 GiB", 1, [&](int, cudaStream_t stream) {
      read_kernel<<<device_info(0).sm_count * 4, 512, 0, stream>>>(memory.as<uint4>(), bytes / 16, sink.as<unsigned>());
    });
    ceiling = static_cast<double>(bytes) / t.median * 1e6;
    const Memory to(bytes / 2);
    const Median c = in_graph("copy 2 GiB", 1, [&](int, cudaStream_t stream) {
      OK(cudaMemcpyAsync(to.data, memory.data, bytes / 2, cudaMemcpyDeviceToDevice, stream));
    });
    for (const auto& [in, out] : {std::pair{4, 4}, std::pair{4, 1}, std::pair{1, 4}}) {
      const std::size_t pieces = bytes / 2 / 16 / 4;
      const Median m = in_graph("mixed", 1, [&, r = in, w = out](int, cudaStream_t stream) {
        mixed_kernel<<<device_info(0).sm_count * 8, 256, 0, stream>>>(memory.as<uint4>(), to.as<uint4>(), pieces, r, w);
      });
      std::printf("streaming %d bytes read to %d written: %.0f GB/s\n", in, out,
                  static_cast<double>(pieces) * 16 * (in + out) / m.median * 1e-3);
    }
    std::printf("memcpy: %.0f GB/s read and written\n", static_cast<double>(bytes) / c.median * 1e-3);
  }
  std::printf("%s, read bandwidth %.0f GB/s\n", device_info(0).name.c_str(), ceiling * 1e-9);
  if (!pages) plain_floor<1, 4>();
  constexpr RotationKind kHaar = RotationKind::Haar, kHadamard = RotationKind::Hadamard;
  const auto all_rows_back = [&] {
    for (const RotationKind r : {kHaar, kHadamard}) {
      for (const DType d : {DType::F16, DType::BF16, DType::F32}) rows_back("tq4", r, 128, d, 32768, 8, false, false);
    }
    rows_back("tq4", kHaar, 128, DType::F16, 32768, 8, true, false);
    if (quick) return;
    rows_back("tq4", kHaar, 128, DType::F16, 32768, 8, false, true);
    rows_back("tq3", kHaar, 128, DType::F16, 32768, 8, true, false);
    rows_back("tq2", kHaar, 128, DType::F16, 32768, 8, false, false);
    for (const RotationKind r : {kHaar, kHadamard}) {
      rows_back("tq3", r, 128, DType::F16, 32768, 8, false, false);
      rows_back("tq4", r, 64, DType::F16, 65536, 8, false, false);
      rows_back("tq4", r, 256, DType::F16, 16384, 8, false, false);
    }
    rows_back("tq4", kHaar, 128, DType::F16, 131072, 8, false, false);
    rows_back("tq4", kHaar, 128, DType::BF16, 32768, 8, true, false);
  };
  if (pages) {
    constexpr RotationKind kOwn = RotationKind::None;
    const std::vector<int> dims = argc > 3 ? std::vector<int>{std::atoi(argv[3])} : std::vector<int>{128, 64, 256};
    if (argc > 5) {  // one codec in one layout
      all_pages(argv[4], kOwn, argv[5], dims[0], 8, 524288 / dims[0]);
      return 0;
    }
    for (const int dim : dims) {
      for (const char* layout : {"turboquant-vllm", "padded"}) step("turboquant-vllm", kOwn, dim, 32, false, layout);
      for (const char* codec : {"vllm:k8v4", "vllm:4bit_nc", "vllm:k3v4_nc", "vllm:3bit_nc"}) step(codec, kOwn, dim, 32, false, "vllm");
    }
    step("turboquant-vllm-k4v3", kOwn, 128, 32, false, "turboquant-vllm");
    step("turboquant-vllm", kOwn, 128, 32, true, "turboquant-vllm");
    step("vllm:4bit_nc", kOwn, 128, 32, false, "swapped");
    for (const int dim : dims) {
      for (const DType d : {DType::F16, DType::BF16})
        planes("turboquant-vllm", kOwn, dim, d, 4194304 / dim, 8, Path::Tensor, d == DType::F16);
    }
    planes("turboquant-vllm-k3v4", kOwn, 128, DType::F16, 32768, 8, Path::Tensor, true);
    planes("turboquant-vllm", kOwn, 128, DType::F32, 32768, 8, Path::Tensor, true);
    planes("turboquant-vllm", kOwn, 128, DType::F16, 32768, 8, Path::Sequential, true);
    for (const int dim : dims) {
      const int ctx = 524288 / dim;
      all_pages("tq4", kHaar, "native", dim, 8, ctx);
      all_pages("tq4", kHadamard, "native", dim, 8, ctx);
      for (const char* layout : {"turboquant-vllm", "padded"}) all_pages("turboquant-vllm", kOwn, layout, dim, 8, ctx);
      for (const char* codec : {"vllm:k8v4", "vllm:4bit_nc", "vllm:k3v4_nc", "vllm:3bit_nc"}) all_pages(codec, kOwn, "vllm", dim, 8, ctx);
    }
    all_pages("vllm:4bit_nc", kOwn, "swapped", 128, 8, 4096);
    std::fclose(raw);
    return 0;
  }
  if (back) {
    all_rows_back();
    std::fclose(raw);
    return 0;
  }
  plain_floor<4, 1>();
  empty(1, 32, 0);
  empty(dim3(16, 1, 2), 256, 17472);
  for (const RotationKind r : {kHaar, kHadamard}) {
    step("tq4", r, 128, 32, false, "native", r == kHaar);
    if (!quick) step("tq4", r, 128, 32, true);
  }
  if (!quick) {
    step("tq4", kHaar, 128, 1, false);
    for (const char* codec : {"k4v3", "tq3", "k8v4"}) {
      for (const RotationKind r : {kHaar, kHadamard}) step(codec, r, 128, 32, false);
    }
    for (const char* codec : {"vllm:k8v4", "vllm:4bit_nc", "vllm:k3v4_nc", "vllm:3bit_nc"}) {
      for (const int dim : {64, 128, 256}) step(codec, RotationKind::None, dim, 32, false, "vllm");
    }
    step("turboquant-vllm", RotationKind::None, 128, 32, false, "turboquant-vllm");
    for (const int dim : {64, 256}) {
      for (const RotationKind r : {kHaar, kHadamard}) step("tq4", r, dim, 32, false);
    }
    step("tq4", kHaar, 128, 256, false);
  }
  for (const RotationKind r : {kHaar, kHadamard}) planes("tq4", r, 128, DType::F16, 32768, 8, Path::Tensor, true);
  planes("tq4", kHaar, 128, DType::F16, 32768, 8, Path::Single, true);
  if (!quick) {
    for (const RotationKind r : {kHaar, kHadamard}) {
      planes("tq4", r, 128, DType::F16, 32768, 8, Path::Sequential, true);
      planes("tq4", r, 128, DType::BF16, 32768, 8, Path::Tensor, true);
      planes("tq4", r, 128, DType::F32, 32768, 8, Path::Tensor, true);
      planes("tq3", r, 128, DType::F16, 32768, 8, Path::Tensor, true);
      planes("tq2", r, 128, DType::F16, 32768, 8, Path::Tensor, false);
      planes("tq4", r, 64, DType::F16, 65536, 8, Path::Tensor, true);
    }
    for (const RotationKind r : {kHaar, kHadamard}) planes("tq4", r, 256, DType::F16, 16384, 8, Path::Tensor, true);
    for (const char* codec : {"k8v4", "vllm:4bit_nc", "vllm:3bit_nc", "turboquant-vllm"})
      planes(codec, RotationKind::None, 128, DType::F16, 32768, 8, Path::Tensor, false);
    for (const DType d : {DType::BF16, DType::F32}) {
      for (const int dim : {128, 64}) planes("turboquant-vllm", RotationKind::None, dim, d, 4194304 / dim, 8, Path::Tensor, dim == 128);
    }
    planes("fp8", kHaar, 128, DType::F16, 32768, 8, Path::Tensor, false);
    planes("tq4", RotationKind::HadamardSigned, 128, DType::F16, 32768, 8, Path::Tensor, false);
    for (const std::int64_t n : {1024, 4096, 131072}) planes("tq4", kHaar, 128, DType::F16, n, 8, Path::Tensor, false);
    planes("tq4", kHadamard, 128, DType::F16, 131072, 8, Path::Tensor, false);
  }
  if (!forward) all_rows_back();
  std::fclose(raw);
  return 0;
}
