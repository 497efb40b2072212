// Throughput of the CPU codecs in vectors a second: encode, decode, decode to rotated space, with Haar and Hadamard rotations, on one thread
// and on several, beside the fused-multiply-add peak of the core. items_per_second is vectors (fused multiply-adds for fma_peak).
//   tq4_bench_cpu [--n=VECTORS] [Google Benchmark's own options]
// Names are OP/ROTATION/bits:B/dim:D/threads:T[/fp16][/scalar].
#include <benchmark/benchmark.h>
#ifdef __linux__
#include <sys/mman.h>
#endif

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include "fma_peak.h"
#include "tq4/codec.h"

namespace {

using namespace tq4;

std::int64_t g_vectors = 100000;  // 51 MB of fp32 at head_dim 128: outside the caches, as a dump is

struct Case {
  SideSpec spec;
  int dim = 128;
  int threads = 1;
  DType dtype = DType::F32;
  bool scalar = false;
};

/// Memory as NumPy gives it to FAISS in the comparison: large arrays ask for huge pages. Begins at a cache line.
template <class T>
struct HugePages {
  using value_type = T;
  static constexpr std::size_t kPage = std::size_t{2} << 20;
  T* allocate(std::size_t n) {
    const std::size_t bytes = (n * sizeof(T) + kPage - 1) / kPage * kPage;
    void* memory = std::aligned_alloc(kPage, bytes);
    if (memory == nullptr) throw std::bad_alloc();
#ifdef __linux__
    madvise(memory, bytes, MADV_HUGEPAGE);  // a wish: where the system has none, pages are ordinary
#endif
    return static_cast<T*>(memory);
  }
  void deallocate(T* memory, std::size_t) { std::free(memory); }
  bool operator==(const HugePages&) const { return true; }
};
template <class T>
using Buffer = std::vector<T, HugePages<T>>;

/// Codec, Gaussian input and room for the output. Allocated and touched before anything is timed.
class Workload {
 public:
  explicit Workload(const Case& c) : codec(c.spec, c.dim), n(g_vectors), x(static_cast<std::size_t>(n * c.dim)), back(x.size()) {
    std::mt19937 gen(1);
    std::normal_distribution<float> normal;
    std::vector<float> some(1 << 16);
    for (float& v : some) v = normal(gen);
    for (std::size_t i = 0; i < x.size(); ++i) x[i] = some[(i * 2654435761u >> 7) & 0xffff];
    raw.resize(x.size() * dtype_size(c.dtype));
    from_float(x.data(), x.size(), c.dtype, raw.data());
    codes.resize(static_cast<std::size_t>(n) * codec.code_bytes());
    for (auto* plane : {&scale, &zero, &residual}) plane->resize(static_cast<std::size_t>(n));
    signs.resize(x.size() / 8);
    codec.encode(raw.data(), c.dtype, n, out(), {}, {});
  }
  EncodedOut out() { return {codes.data(), scale.data(), zero.data(), signs.data(), residual.data()}; }
  EncodedIn in() const { return {codes.data(), scale.data(), zero.data(), signs.data(), residual.data()}; }

  Codec codec;
  std::int64_t n;
  Buffer<float> x, back, scale, zero, residual;
  Buffer<unsigned char> raw;
  Buffer<std::uint8_t> codes, signs;
};

enum class Op { Encode, Decode, DecodeRotated };

void run(benchmark::State& state, const Case& c, Op op) {
  Workload w(c);
  Exec exec;
  exec.threads = c.threads;
  exec.scalar = c.scalar;
  for (auto _ : state) {
    switch (op) {
      case Op::Encode: w.codec.encode(w.raw.data(), c.dtype, w.n, w.out(), {}, exec); break;
      case Op::Decode: w.codec.decode(w.in(), w.n, w.back.data(), {}, exec); break;
      case Op::DecodeRotated: w.codec.decode_rotated(w.in(), w.n, w.back.data(), exec); break;
    }
    benchmark::ClobberMemory();
  }
  state.SetItemsProcessed(state.iterations() * w.n);
}

void fma_peak(benchmark::State& state) {
  std::int64_t done = 0;
  for (auto _ : state) done += bench::run_fmas(20'000'000);
  state.SetItemsProcessed(done);
}

void add(const char* op_name, Op op, const Case& c) {
  std::string name = op_name;
  const bool haar = c.spec.rotation == RotationKind::Haar;
  if (op != Op::DecodeRotated) name += haar ? "/haar" : c.spec.rotation == RotationKind::None ? "/none" : "/hadamard";
  const char* kinds[] = {"", "/prod", "/mixed", "/fp8", "/uniform", "/fp16-codec"};
  name += kinds[static_cast<int>(c.spec.kind)];
  if (c.spec.pair_codebook) name += "/pairs";
  name += "/bits:" + std::to_string(c.spec.bits) + "/dim:" + std::to_string(c.dim) + "/threads:" + std::to_string(c.threads);
  if (c.dtype == DType::F16) name += "/fp16";
  if (c.scalar) name += "/scalar";
  auto* registered = benchmark::RegisterBenchmark(name.c_str(), [c, op](benchmark::State& state) { run(state, c, op); });
  registered->Unit(benchmark::kMillisecond);
  // One thread is timed in CPU time, which other processes disturb least; several in wall time, as the caller's CPU time is only its share.
  if (c.threads > 1) registered->UseRealTime();
}

void add_all(const Case& c) {
  add("encode", Op::Encode, c);
  add("decode", Op::Decode, c);
  if (c.spec.rotation == RotationKind::Haar) add("decode_rotated", Op::DecodeRotated, c);
}

void register_benchmarks() {
  benchmark::RegisterBenchmark("fma_peak", fma_peak)->Unit(benchmark::kMillisecond);
  Case c;
  for (const int bits : {2, 3, 4}) {
    for (const RotationKind rotation : {RotationKind::Haar, RotationKind::Hadamard}) {
      c.spec = {};
      c.spec.bits = bits;
      c.spec.rotation = rotation;
      add_all(c);
    }
  }
  for (const int dim : {64, 80, 256}) {
    c = {};
    c.dim = dim;
    add_all(c);
    c.spec.rotation = RotationKind::Hadamard;
    add_all(c);
  }
  c = {};
  c.dtype = DType::F16;
  add("encode", Op::Encode, c);
  c.spec.rotation = RotationKind::Hadamard;
  add("encode", Op::Encode, c);
  for (const int threads : {2, 4, 8}) {
    c = {};
    c.threads = threads;
    add_all(c);
    c.spec.rotation = RotationKind::Hadamard;
    add_all(c);
  }
  const auto other = [](CodeKind kind, int bits, RotationKind rotation, bool pairs = false) {
    Case o;
    o.spec.kind = kind;
    o.spec.bits = bits;
    o.spec.rotation = rotation;
    o.spec.pair_codebook = pairs;
    add_all(o);
  };
  other(CodeKind::Mse, 4, RotationKind::Haar, true);
  other(CodeKind::Mse, 8, RotationKind::Hadamard);
  other(CodeKind::Prod, 4, RotationKind::Haar);
  other(CodeKind::Mixed, 3, RotationKind::Haar);
  other(CodeKind::Uniform, 4, RotationKind::None);
  other(CodeKind::Fp8, 8, RotationKind::None);
  c = {};
  c.scalar = true;
  add_all(c);
}

}  // namespace

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  for (int i = 1; i < argc; ++i) {
    const std::string_view arg = argv[i];
    if (arg.substr(0, 4) != "--n=" || (g_vectors = std::atoll(argv[i] + 4)) <= 0) {
      return benchmark::ReportUnrecognizedArguments(argc, argv) ? 2 : 0;
    }
  }
  register_benchmarks();
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
  return 0;
}
