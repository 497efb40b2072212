// The profiler's core (tq4/profile.h): sets up caches, captures a graph that goes through all of them once, times its launches.
#include "tq4/profile.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <functional>
#include <memory>
#include <numeric>
#include <random>
#include <thread>

#include "cuda/baseline/paged_decode.h"
#include "cuda/check.h"
#include "cuda/profile_check.h"
#include "cuda/profile_kernels.h"
#include "cuda/profile_memory.h"
#include "cuda/profile_plan.h"
#include "cuda/profile_source.h"
#include "tq4/prefill.h"
#include "tq4/tune.h"

namespace tq4::gpu {
namespace {

constexpr const char* kWhere = "profile";

class StreamOwner {
 public:
  StreamOwner() { check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), kWhere); }
  ~StreamOwner() { cudaStreamDestroy(stream); }
  StreamOwner(const StreamOwner&) = delete;
  StreamOwner& operator=(const StreamOwner&) = delete;
  cudaStream_t stream = nullptr;
};

/// A captured graph of call(0) ... call(calls - 1), again and again `cycles` times.
class CallGraph {
 public:
  CallGraph(int calls, int cycles, cudaStream_t stream, const std::function<void(int, cudaStream_t)>& call) : stream_(stream) {
    check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), kWhere);
    for (int i = 0; i < calls * cycles; ++i) call(i % calls, stream);
    check(cudaStreamEndCapture(stream, &graph_), kWhere);
    check(cudaGraphInstantiate(&exec_, graph_, 0), kWhere);
    check(cudaEventCreate(&start_), kWhere);
    check(cudaEventCreate(&stop_), kWhere);
  }
  ~CallGraph() {
    cudaEventDestroy(start_);
    cudaEventDestroy(stop_);
    cudaGraphExecDestroy(exec_);
    cudaGraphDestroy(graph_);
  }
  CallGraph(const CallGraph&) = delete;
  CallGraph& operator=(const CallGraph&) = delete;

  /// Seconds of one launch.
  double run() const {
    check(cudaEventRecord(start_, stream_), kWhere);
    check(cudaGraphLaunch(exec_, stream_), kWhere);
    check(cudaEventRecord(stop_, stream_), kWhere);
    check(cudaEventSynchronize(stop_), kWhere);
    float ms = 0;
    check(cudaEventElapsedTime(&ms, start_, stop_), kWhere);
    return static_cast<double>(ms) * 1e-3;
  }

 private:
  cudaStream_t stream_;
  cudaGraph_t graph_ = nullptr;
  cudaGraphExec_t exec_ = nullptr;
  cudaEvent_t start_ = nullptr, stop_ = nullptr;
};

/// Median and spread of one call, from options.samples launches (options.rest_seconds apart) of a graph that goes through call(0) ...
/// call(calls - 1) in whole cycles: about 3 ms of work, at most 64 calls (or one cycle). A graph's own beginning and end, some 4 us, then
/// belong to many calls, as in a model of many layers.
Timing time_graph(int calls, const ProfileOptions& options, const std::function<void(int, cudaStream_t)>& call) {
  const StreamOwner owner;
  call(0, owner.stream);  // outside of the graph: loads modules, sets attributes, reports errors plainly
  check(cudaStreamSynchronize(owner.stream), kWhere);
  double cycle = 0;
  {
    const CallGraph once(calls, 1, owner.stream, call);
    once.run();
    cycle = once.run();
  }
  const double enough = std::ceil(3e-3 / std::max(cycle, 1e-6));
  const int cycles = static_cast<int>(std::clamp(enough, 1.0, std::ceil(64.0 / calls)));
  const CallGraph graph(calls, cycles, owner.stream, call);
  Timing t;
  t.calls = calls * cycles;
  for (int i = -3; i < options.samples; ++i) {
    if (options.rest_seconds > 0) std::this_thread::sleep_for(std::chrono::duration<double>(options.rest_seconds));
    const double seconds = graph.run();
    if (i >= 0) t.samples.push_back(seconds / t.calls);
  }
  std::vector<double> sorted = t.samples;
  std::sort(sorted.begin(), sorted.end());
  t.median = sorted[sorted.size() / 2];
  t.low = sorted[sorted.size() / 10];
  t.high = sorted[sorted.size() - 1 - sorted.size() / 10];
  return t;
}

/// Every page of the cache in random order, dealt to the sequences.
std::vector<std::int32_t> block_table(const std::vector<std::int32_t>& lengths, int block_size, std::int64_t pages, std::int64_t stride,
                                      std::uint64_t seed) {
  std::vector<std::int32_t> order(static_cast<std::size_t>(pages));
  std::iota(order.begin(), order.end(), 0);
  std::shuffle(order.begin(), order.end(), std::mt19937_64(seed));
  std::vector<std::int32_t> table(lengths.size() * static_cast<std::size_t>(stride), 0);
  std::size_t next = 0;
  for (std::size_t s = 0; s < lengths.size(); ++s) {
    for (std::int64_t b = 0; b * block_size < lengths[s]; ++b)
      table[s * static_cast<std::size_t>(stride) + static_cast<std::size_t>(b)] = order[next++];
  }
  return table;
}

Timing time_baseline(const ProfileShape& s, const ProfileSizes& z, const ProfileOptions& options, const DeviceInfo& device, bool fp8) {
  const std::size_t bytes = z.fp16_bytes / (fp8 ? 2 : 1) / 2;  // of K or V
  const int caches = fp8 ? z.fp8_caches : z.fp16_caches;
  std::vector<BufferPtr> memory;
  for (int i = 0; i < 2 * caches; ++i) {
    memory.push_back(std::make_unique<Buffer>(bytes));
    if (fp8) {
      fill_e4m3(memory.back()->as<std::uint8_t>(), static_cast<std::int64_t>(bytes), static_cast<std::uint64_t>(i + 1), nullptr);
    } else {
      fill_gaussian(memory.back()->as<std::uint16_t>(), static_cast<std::int64_t>(bytes / 2), static_cast<std::uint64_t>(i + 1), nullptr);
    }
  }
  // One table for all caches, as an engine's layers have it.
  const BufferPtr table = Buffer::of(block_table(z.lengths, s.block_size, z.pages, z.table_stride, options.seed));
  const BufferPtr lengths = Buffer::of(z.lengths);
  const std::size_t q_elements = static_cast<std::size_t>(s.batch * s.num_q_heads * s.head_dim);
  const Buffer q(q_elements * 2), out(q_elements * 2);
  fill_gaussian(q.as<std::uint16_t>(), static_cast<std::int64_t>(q_elements), 77, nullptr);
  check(cudaDeviceSynchronize(), kWhere);
  BaselineParams p;
  p.q = q.as<void>();
  p.out = out.as<void>();
  p.fp8 = fp8;
  p.num_seqs = s.batch;
  p.num_q_heads = s.num_q_heads;
  p.num_kv_heads = s.num_kv_heads;
  p.head_dim = s.head_dim;
  p.block_size = s.block_size;
  p.block_table = table->as<std::int32_t>();
  p.block_table_stride = z.table_stride;
  p.seq_lens = lengths->as<std::int32_t>();
  p.max_seq_len = z.longest;
  p.workspace_bytes = baseline_workspace_bytes(p, device);
  const Buffer workspace(p.workspace_bytes);
  check(cudaMemset(workspace.as<void>(), 0, p.workspace_bytes), kWhere);
  p.workspace = workspace.as<void>();
  return time_graph(caches, options, [&](int i, cudaStream_t stream) {
    BaselineParams call = p;
    call.k = memory[static_cast<std::size_t>(2 * i)]->as<void>();
    call.v = memory[static_cast<std::size_t>(2 * i + 1)]->as<void>();
    baseline_decode(call, device, stream);
  });
}

void profile_decode(const ProfileShape& s, const ProfileOptions& options, const DeviceInfo& device, const ProfileSizes& z,
                    ProfileResult& result) {
  const ProfileSource source(s, options);
  const DeviceCodec codec(s.spec, s.head_dim, s.num_kv_heads, &source.calibration());
  const PageLayout layout = profile_layout(s);
  {
    std::vector<BufferPtr> memory;
    for (int i = 0; i < z.caches; ++i) {
      memory.push_back(std::make_unique<Buffer>(z.cache_bytes));
      if (i == 0) {
        source.fill_cache(codec, {layout, memory[0]->as<std::uint8_t>(), z.pages}, options.seed);
      } else {
        check(cudaMemcpy(memory.back()->as<void>(), memory[0]->as<void>(), z.cache_bytes, cudaMemcpyDeviceToDevice), kWhere);
      }
    }
    // One table for all caches, as an engine's layers have it.
    const std::vector<std::int32_t> first_table = block_table(z.lengths, s.block_size, z.pages, z.table_stride, options.seed);
    const BufferPtr table = Buffer::of(first_table);
    const BufferPtr lengths = Buffer::of(z.lengths);
    const std::size_t q_elements = static_cast<std::size_t>(s.batch * s.q_len) * static_cast<std::size_t>(s.num_q_heads * s.head_dim);
    const BufferPtr q = Buffer::of(source.queries(static_cast<std::int64_t>(s.batch) * s.q_len, options.seed));
    const Buffer out(q_elements * 2);
    const std::size_t exact_rows =
        static_cast<std::size_t>(s.batch * s.num_kv_heads) * static_cast<std::size_t>(s.spec.sinks + s.spec.window);
    const std::size_t exact_elements = exact_rows * static_cast<std::size_t>(s.head_dim);
    const Buffer exact(exact_elements * 4);
    DecodeParams p;
    if (exact_rows > 0) {
      fill_gaussian(exact.as<std::uint16_t>(), static_cast<std::int64_t>(2 * exact_elements), 99, nullptr);
      const std::size_t sinks = static_cast<std::size_t>(s.batch * s.num_kv_heads) * static_cast<std::size_t>(s.spec.sinks * s.head_dim);
      const auto* base = exact.as<std::uint16_t>();
      p.exact = {s.spec.sinks, s.spec.window, base, base + sinks, base + 2 * sinks, base + sinks + exact_elements, true};
    }
    p.q = q->as<void>();
    p.q_dtype = s.dtype;
    p.out = out.as<void>();
    p.num_seqs = s.batch;
    p.q_len = s.q_len;
    p.num_q_heads = s.num_q_heads;
    p.cache = {layout, memory[0]->as<std::uint8_t>(), z.pages};
    p.block_table = table->as<std::int32_t>();
    p.block_table_stride = z.table_stride;
    p.seq_lens = lengths->as<std::int32_t>();
    p.max_seq_len = z.longest;
    p.general_path = s.general_path;
    p.splits = s.splits;
    p.q_rotated = p.out_rotated = !s.rotate;
    p.workspace_bytes = decode_workspace_bytes(codec, p);
    const Buffer workspace(p.workspace_bytes);
    check(cudaMemset(workspace.as<void>(), 0, std::max<std::size_t>(p.workspace_bytes, 1)), kWhere);
    p.workspace = workspace.as<void>();
    result.path = decode_path(codec, p);
    if (options.overlap) p.fresh_tokens = s.q_len;
    if (options.check && s.rotate && !(s.rope && exact_rows > 0)) {
      decode(codec, p, nullptr);
      check(cudaDeviceSynchronize(), kWhere);
      result.relative_error = check_decode(codec, p, first_table, z.lengths[0], source.calibration());
    }
    result.time = time_graph(z.caches, options, [&](int i, cudaStream_t stream) {
      DecodeParams call = p;
      call.cache.data = memory[static_cast<std::size_t>(i)]->as<std::uint8_t>();
      decode(codec, call, stream);
    });
    // Exact tokens are read in fp16 instead of from the pages.
    double compressed = 0, exact_tokens = 0;
    for (const std::int32_t n : z.lengths) {
      const double e = std::min<double>(n, s.spec.sinks + s.spec.window);
      exact_tokens += e;
      compressed += n - e;
    }
    result.bytes = s.num_kv_heads * (compressed * static_cast<double>(token_head_bytes(layout)) + exact_tokens * 4 * s.head_dim);
  }
  if (options.baselines && s.q_len == 1 && s.head_dim % 16 == 0 && s.head_dim <= 256 && s.num_q_heads / s.num_kv_heads <= 16 &&
      s.block_size % 16 == 0) {
    result.fp16 = time_baseline(s, z, options, device, false);
    result.fp8 = time_baseline(s, z, options, device, true);
  }
}

/// One token a sequence, to the slot after its context.
void profile_store(const ProfileShape& s, const ProfileOptions& options, const ProfileSizes& z, ProfileResult& result) {
  const ProfileSource source(s, options);
  const DeviceCodec codec(s.spec, s.head_dim, s.num_kv_heads, &source.calibration());
  const PageLayout layout = profile_layout(s);
  std::vector<BufferPtr> memory, mappings;
  for (int i = 0; i < z.caches; ++i) {
    memory.push_back(std::make_unique<Buffer>(z.cache_bytes));
    std::mt19937_64 random(options.seed + static_cast<std::uint64_t>(i));
    std::vector<std::int64_t> slots;
    slots.reserve(static_cast<std::size_t>(s.batch * s.q_len));
    for (int b = 0; b < s.batch * s.q_len; ++b)
      slots.push_back(static_cast<std::int64_t>(random() % static_cast<std::uint64_t>(z.pages * s.block_size)));
    mappings.push_back(Buffer::of(slots));
  }
  const std::int64_t n = static_cast<std::int64_t>(s.batch) * s.q_len;
  const std::size_t elements = static_cast<std::size_t>(n * s.num_kv_heads * s.head_dim);
  const Buffer k(elements * 2), v(elements * 2);
  source.keys_or_values(codec, Side::K, k.as<std::uint16_t>(), 0, n, 1);
  source.keys_or_values(codec, Side::V, v.as<std::uint16_t>(), 0, n, 2);
  check(cudaDeviceSynchronize(), kWhere);
  result.time = time_graph(z.caches, options, [&](int i, cudaStream_t stream) {
    StoreParams p;
    p.k = k.as<void>();
    p.v = v.as<void>();
    p.n = n;
    p.slot_mapping = mappings[static_cast<std::size_t>(i)]->as<std::int64_t>();
    p.positions = p.slot_mapping;
    p.cache = {layout, memory[static_cast<std::size_t>(i)]->as<std::uint8_t>(), z.pages};
    store(codec, p, stream);
  });
  result.path = "store";
  result.bytes = static_cast<double>(n) * s.num_kv_heads * (4.0 * s.head_dim + static_cast<double>(token_head_bytes(layout)));
}

/// K only: fp16 rows to planes (Encode) or planes to fp16 rows (Dequant; in rotated space unless `rotate`).
void profile_planes(const ProfileShape& s, const ProfileOptions& options, const ProfileSizes& z, ProfileResult& result) {
  const ProfileSource source(s, options);
  const DeviceCodec codec(s.spec, s.head_dim, s.num_kv_heads, &source.calibration());
  const Codec& host = codec.host(Side::K);
  const std::int64_t n = z.tokens;
  const std::size_t rows = static_cast<std::size_t>(n * s.num_kv_heads), elements = rows * static_cast<std::size_t>(s.head_dim);
  std::vector<std::int64_t> positions(static_cast<std::size_t>(n));
  std::iota(positions.begin(), positions.end(), 0);
  const BufferPtr device_positions = Buffer::of(positions);
  struct Set {
    BufferPtr x, codes, scale, zero, signs, residual;
  };
  std::vector<Set> sets;
  const auto planes = [](const Set& x) {
    return EncodedOut{x.codes->as<std::uint8_t>(), x.scale->as<float>(), x.zero->as<float>(), x.signs->as<std::uint8_t>(),
                      x.residual->as<float>()};
  };
  const auto run_encode = [&](const Set& x, cudaStream_t stream) {
    EncodeParams p;
    p.x = x.x->as<void>();
    p.n = n;
    p.heads = s.num_kv_heads;
    p.positions = device_positions->as<std::int64_t>();
    p.out = planes(x);
    encode(codec, Side::K, p, stream);
  };
  for (int i = 0; i < z.caches; ++i) {
    sets.push_back({std::make_unique<Buffer>(elements * 2), std::make_unique<Buffer>(rows * host.code_bytes()),
                    std::make_unique<Buffer>(rows * 4), std::make_unique<Buffer>(host.has_zero() ? rows * 4 : 0),
                    std::make_unique<Buffer>(host.has_signs() ? elements / 8 : 0),
                    std::make_unique<Buffer>(host.has_signs() ? rows * 4 : 0)});
    source.keys_or_values(codec, Side::K, sets.back().x->as<std::uint16_t>(), 0, n, options.seed + static_cast<std::uint64_t>(i));
    run_encode(sets.back(), nullptr);
  }
  check(cudaDeviceSynchronize(), kWhere);
  result.time = time_graph(z.caches, options, [&](int i, cudaStream_t stream) {
    const Set& x = sets[static_cast<std::size_t>(i)];
    if (s.op == ProfileOp::Encode) {
      run_encode(x, stream);
      return;
    }
    DequantParams p;
    const EncodedOut o = planes(x);
    p.in = {o.codes, o.scale, o.zero, o.signs, o.residual_norm};
    p.n = n;
    p.heads = s.num_kv_heads;
    p.out = x.x->as<void>();
    p.rotated = !s.rotate;
    p.positions = device_positions->as<std::int64_t>();
    dequant(codec, Side::K, p, stream);
  });
  result.path = s.op == ProfileOp::Encode ? "encode" : "dequant";
  result.bytes = static_cast<double>(rows) *
                 (2.0 * s.head_dim + static_cast<double>(host.code_bytes()) + 4.0 * host.has_scale() + 4.0 * host.has_zero());
}

/// Queries of every token of every sequence over their compressed keys and values, causal.
void profile_prefill(const ProfileShape& s, const ProfileOptions& options, const ProfileSizes& z, ProfileResult& result) {
  const ProfileSource source(s, options);
  const DeviceCodec codec(s.spec, s.head_dim, s.num_kv_heads, &source.calibration());
  const std::int64_t n = z.tokens;
  const std::size_t rows = static_cast<std::size_t>(n * s.num_kv_heads), dim = static_cast<std::size_t>(s.head_dim);
  std::vector<std::int32_t> ends{0};
  std::vector<std::int64_t> positions;
  for (const std::int32_t length : z.lengths) {
    ends.push_back(ends.back() + length);
    for (std::int64_t i = 0; i < length; ++i) positions.push_back(i);
  }
  const BufferPtr cu = Buffer::of(ends), device_positions = Buffer::of(positions);
  std::vector<BufferPtr> memory;
  const auto take = [&](std::size_t bytes) { return memory.emplace_back(std::make_unique<Buffer>(bytes))->as<void>(); };
  PrefillParams p;
  double plane_bytes = 0;
  {
    const Buffer x(rows * dim * 2);
    for (const Side side : {Side::K, Side::V}) {
      const Codec& host = codec.host(side);
      EncodeParams e;
      e.out.codes = static_cast<std::uint8_t*>(take(rows * host.code_bytes()));
      e.out.scale = static_cast<float*>(take(rows * 4));
      e.out.zero = host.has_zero() ? static_cast<float*>(take(rows * 4)) : nullptr;
      e.out.signs = host.has_signs() ? static_cast<std::uint8_t*>(take(rows * dim / 8)) : nullptr;
      e.out.residual_norm = host.has_signs() ? static_cast<float*>(take(rows * 4)) : nullptr;
      source.keys_or_values(codec, side, x.as<std::uint16_t>(), 0, n, options.seed + (side == Side::K ? 0 : 1));
      e.x = x.as<void>();
      e.n = n;
      e.heads = s.num_kv_heads;
      e.positions = device_positions->as<std::int64_t>();
      encode(codec, side, e, nullptr);
      check(cudaDeviceSynchronize(), kWhere);
      (side == Side::K ? p.k_planes : p.v_planes) = {e.out.codes, e.out.scale, e.out.zero, e.out.signs, e.out.residual_norm};
      plane_bytes += static_cast<double>(rows) * static_cast<double>(host.code_bytes() + 4 * host.has_scale() + 4 * host.has_zero());
    }
  }
  const std::vector<std::uint16_t> queries = source.queries(n, options.seed);
  const BufferPtr q = Buffer::of(queries);
  const Buffer out(queries.size() * 2);
  p.q = q->as<void>();
  p.dtype = s.dtype;
  p.out = out.as<void>();
  p.num_seqs = s.batch;
  p.cu_q = p.cu_k = cu->as<std::int32_t>();
  p.max_q_len = static_cast<int>(z.longest);
  p.max_kv_len = z.longest;
  p.num_q_heads = s.num_q_heads;
  p.general_path = s.general_path;
  p.workspace_bytes = prefill_workspace_bytes(codec, p);
  p.workspace = take(p.workspace_bytes);
  if (options.check) {
    prefill(codec, p, nullptr);
    check(cudaDeviceSynchronize(), kWhere);
    result.relative_error = check_prefill(codec, p, z.lengths[0], source.calibration());
  }
  result.time = time_graph(z.caches, options, [&](int, cudaStream_t stream) { prefill(codec, p, stream); });
  result.path = prefill_path(codec, p);
  result.bytes = plane_bytes + 2.0 * static_cast<double>(queries.size()) * 2.0;
  for (const std::int32_t length : z.lengths) result.flops += 2.0 * length * (length + 1.0) * s.num_q_heads * s.head_dim;
}

}  // namespace

ProfileResult profile(const ProfileShape& shape, const ProfileOptions& options) {
  int current = 0;
  if (device_count() == 0) throw Error(ErrorCode::NoDevice, "no CUDA device is visible");
  check(cudaGetDevice(&current), kWhere);
  const DeviceInfo device = device_info(current);
  require(shape.batch >= 1 && shape.ctx >= 1 && shape.q_len >= 1 && options.samples >= 1,
          "batch, ctx, q_len and samples must be at least 1", kWhere);
  require(options.rest_seconds >= 0 && options.rest_seconds <= 10, "rest_seconds is not in 0 to 10", kWhere);
  ProfileResult result;
  std::size_t free_bytes = 0, total = 0;
  check(cudaMemGetInfo(&free_bytes, &total), kWhere);
  const ProfilePlan plan = profile_plan(shape, options, device);
  if (plan.bytes > free_bytes / 10 * 9) {
    result.skipped =
        "needs " + std::to_string(plan.bytes >> 20) + " MiB of device memory, " + std::to_string(free_bytes >> 20) + " are free";
    return result;
  }
  const ProfileSizes z = profile_sizes(shape, options, device);
  result.caches = z.caches;
  try {
    switch (shape.op) {
      case ProfileOp::Decode: profile_decode(shape, options, device, z, result); break;
      case ProfileOp::Store: profile_store(shape, options, z, result); break;
      case ProfileOp::Encode:
      case ProfileOp::Dequant: profile_planes(shape, options, z, result); break;
      case ProfileOp::Prefill: profile_prefill(shape, options, z, result); break;
    }
  } catch (const Error& error) {
    if (error.code() != ErrorCode::Unsupported) throw;
    result.skipped = error.what();
  }
  return result;
}

TuneResult tune(const ProfileShape& shape, const ProfileOptions& options) {
  ProfileOptions quick = options;
  quick.baselines = quick.check = false;
  ProfileShape one = shape;
  one.splits = 0;
  TuneResult result;
  const ProfileResult rule = profile(one, quick);
  result.path = rule.path;
  result.skipped = rule.skipped;
  if (!rule.skipped.empty()) return result;
  result.rule_seconds = result.best_seconds = rule.time.median;
  for (const LaunchChoice& choice : tune_candidates(shape, rule.path)) {
    one.splits = choice.splits;
    const double seconds = profile(one, quick).time.median;
    result.tried.push_back({choice, seconds});
    if (seconds < result.best_seconds) result.best = choice, result.best_seconds = seconds;
  }
  // The rule stays where nothing is clearly better: the spread of a median is about a percent.
  if (result.best_seconds > 0.98 * result.rule_seconds) result.best = {}, result.best_seconds = result.rule_seconds;
  return result;
}

double read_bandwidth() {
  int current = 0;
  if (device_count() == 0) throw Error(ErrorCode::NoDevice, "no CUDA device is visible");
  check(cudaGetDevice(&current), kWhere);
  const DeviceInfo device = device_info(current);
  std::size_t free_bytes = 0, total = 0;
  check(cudaMemGetInfo(&free_bytes, &total), kWhere);
  const std::size_t bytes = std::min<std::size_t>(std::size_t{4} << 30, free_bytes / 4) / 4096 * 4096;
  const Buffer memory(bytes), sink(16);
  fill_gaussian(memory.as<std::uint16_t>(), static_cast<std::int64_t>(bytes / 2), 3, nullptr);
  check(cudaDeviceSynchronize(), kWhere);
  const Timing t = time_graph(1, ProfileOptions{}, [&](int, cudaStream_t stream) {
    read_all(memory.as<void>(), bytes, sink.as<std::uint32_t>(), device.sm_count, stream);
  });
  return static_cast<double>(bytes) / t.median;
}

double launch_seconds() {
  if (device_count() == 0) throw Error(ErrorCode::NoDevice, "no CUDA device is visible");
  return time_graph(200, ProfileOptions{}, [](int, cudaStream_t stream) { empty_launch(stream); }).median;
}

}  // namespace tq4::gpu
