// Prefill and the layer step against float64 attention on what they attend to: the decoded prefix or planes, the new tokens as given.
#include <cmath>
#include <numeric>

#include "gpu/gpu_test.h"
#include "tq4/attention.h"
#include "tq4/error.h"
#include "tq4/prefill.h"

namespace tq4::gpu {
namespace {

struct Case {
  const char* spec = "tq4";
  LayoutKind kind = LayoutKind::Native;
  int dim = 128, q_heads = 8, kv_heads = 2;
  std::vector<int> prefix = {0, 100, 33}, q_lens = {70, 200, 1};
  DType dtype = DType::F16;
  bool causal = true, alibi = false, sinks = false, general = false, int8 = false;
  int window = 0;
  float soft_cap = 0;
  CalibrationOptions calibration = {};
};

/// K and V of some tokens on one head: [n][D] each.
struct Tokens {
  std::vector<float> k, v;
};

struct Problem {
  Case c;
  Random random{31};
  CodecSpec spec;
  LayerCalibration calibration;
  DeviceCodec codec;
  std::vector<std::int32_t> cu_q{0}, cu_k{0};
  std::vector<float> slopes, sinks;
  Values q;

  explicit Problem(const Case& case_)
      : c(case_),
        spec(spec_from_name(c.spec)),
        calibration(made_up_calibration(spec, c.dim, c.kv_heads, c.calibration, random)),
        codec(spec, c.dim, c.kv_heads, &calibration) {
    for (std::size_t s = 0; s < c.q_lens.size(); ++s) {
      cu_q.push_back(cu_q.back() + c.q_lens[s]);
      cu_k.push_back(cu_k.back() + c.prefix[s] + c.q_lens[s]);
    }
    std::uniform_real_distribution<float> uniform(0.0f, 1.0f);
    for (int h = 0; h < c.q_heads; ++h) slopes.push_back(0.02f * uniform(random)), sinks.push_back(3 * uniform(random));
    q = gaussian(static_cast<std::size_t>(cu_q.back() * c.q_heads * c.dim), c.dtype, random, 1.5f);
  }
  std::size_t dim() const { return static_cast<std::size_t>(c.dim); }
  std::size_t heads() const { return static_cast<std::size_t>(c.kv_heads); }

  /// CPU decode of planes [n][heads] of one side to [heads][n][D], positions from 0.
  std::vector<float> decode_side(Side side, const std::vector<std::uint8_t>& codes, const std::vector<float>& scale,
                                 const std::vector<float>& zero, std::size_t n) const {
    const Codec& host = codec.host(side);
    std::vector<float> out(heads() * n * dim());
    for (std::size_t h = 0; h < heads(); ++h) {
      std::vector<std::uint8_t> one;
      std::vector<float> s, z;
      for (std::size_t t = 0; t < n; ++t) {
        const auto row = codes.begin() + static_cast<std::ptrdiff_t>((t * heads() + h) * host.code_bytes());
        one.insert(one.end(), row, row + static_cast<std::ptrdiff_t>(host.code_bytes()));
        s.push_back(scale[t * heads() + h]);
        z.push_back(zero[t * heads() + h]);
      }
      if (n > 0) {
        host.decode({one.data(), s.data(), z.data(), nullptr, nullptr}, static_cast<std::int64_t>(n), out.data() + h * n * dim(),
                    head_transform(&calibration, side, static_cast<int>(h), 0));
      }
    }
    return out;
  }

  /// Relative error of `got` [total_q][q_heads][D] where sequence s attends to k[s], v[s] [heads][length][D].
  double error(const std::vector<float>& got, const std::vector<float>& lse, const std::vector<std::vector<float>>& k,
               const std::vector<std::vector<float>>& v) const {
    AttentionOptions o;
    o.causal = c.causal;
    o.window = c.window;
    o.soft_cap = static_cast<double>(c.soft_cap);
    o.alibi_slopes = c.alibi ? slopes.data() : nullptr;
    o.sink_logits = c.sinks ? sinks.data() : nullptr;
    double sum = 0, norm = 0;
    for (std::size_t s = 0; s < c.q_lens.size(); ++s) {
      const std::size_t rows = static_cast<std::size_t>(c.q_lens[s] * c.q_heads), first = static_cast<std::size_t>(cu_q[s] * c.q_heads);
      std::vector<double> want(rows * dim()), want_lse(rows);
      reference_attention(q.floats.data() + first * dim(), k[s].data(), v[s].data(), c.q_lens[s],
                          static_cast<std::int64_t>(k[s].size() / dim() / heads()), c.q_heads, c.kv_heads, c.dim, o, want.data(),
                          want_lse.data());
      for (std::size_t i = 0; i < want.size(); ++i) {
        const double d = static_cast<double>(got[first * dim() + i]) - want[i];
        if (!std::isfinite(got[first * dim() + i])) return INFINITY;
        sum += d * d;
        norm += want[i] * want[i];
      }
      for (std::size_t r = 0; r < rows && !lse.empty(); ++r) EXPECT_NEAR(lse[first + r], want_lse[r], lse_limit());
    }
    return std::sqrt(sum / norm);
  }
  double limit() const { return c.int8 ? 3e-2 : c.dtype == DType::F16 ? 2e-3 : 1e-2; }
  double lse_limit() const { return c.int8 ? 0.1 : 5e-3; }
  /// The path a call should take on this device.
  std::string path() const {
    const bool hopper = !c.general && codec.device().compute_major == 9 && (c.dim == 64 || c.dim == 128) && c.soft_cap == 0 && !c.alibi;
    return !hopper ? "general" : c.int8 ? "hopper-int8" : "hopper";
  }
};

/// All tokens of all sequences through encode, then prefill from planes.
void check_planes(const Case& c) {
  SCOPED_TRACE(std::string(c.spec) + " d" + std::to_string(c.dim) + (c.causal ? " causal" : "") + " planes");
  Problem x(c);
  const auto total = static_cast<std::size_t>(x.cu_k.back());
  const std::size_t rows = total * x.heads();
  const Values k = gaussian(rows * x.dim(), DType::F16, x.random), v = gaussian(rows * x.dim(), DType::F16, x.random);
  std::vector<std::int64_t> positions;
  for (std::size_t s = 0; s < c.q_lens.size(); ++s) {
    for (int t = 0; t < c.prefix[s] + c.q_lens[s]; ++t) positions.push_back(t);
  }
  const Device<std::int64_t> dp(positions);
  struct Planes {
    Device<std::uint8_t> codes;
    Device<float> scale, zero;
  } planes[2] = {{Device<std::uint8_t>(rows * x.codec.host(Side::K).code_bytes()), Device<float>(rows), Device<float>(rows)},
                 {Device<std::uint8_t>(rows * x.codec.host(Side::V).code_bytes()), Device<float>(rows), Device<float>(rows)}};
  for (const Side side : {Side::K, Side::V}) {
    const Planes& p = planes[static_cast<std::size_t>(side)];
    const Device<std::uint8_t> in(side == Side::K ? k.bytes : v.bytes);
    EncodeParams e;
    e.x = in.get();
    e.n = static_cast<std::int64_t>(total);
    e.heads = c.kv_heads;
    e.positions = dp.get();
    e.out = {p.codes.get(), p.scale.get(), p.zero.get(), nullptr, nullptr};
    encode(x.codec, side, e, nullptr);
    synchronize();
  }
  const Device<std::uint8_t> dq(x.q.bytes), out(x.q.bytes.size());
  const Device<float> lse(static_cast<std::size_t>(x.cu_q.back() * c.q_heads)), slopes(x.slopes), sinks(x.sinks);
  const Device<std::int32_t> cu_q(x.cu_q), cu_k(x.cu_k);
  PrefillParams p;
  p.q = dq.get();
  p.dtype = c.dtype;
  p.out = out.get();
  p.lse = lse.get();
  p.num_seqs = static_cast<int>(c.q_lens.size());
  p.cu_q = cu_q.get();
  p.cu_k = cu_k.get();
  p.max_q_len = *std::max_element(c.q_lens.begin(), c.q_lens.end());
  for (std::size_t s = 0; s < c.q_lens.size(); ++s) p.max_kv_len = std::max<std::int64_t>(p.max_kv_len, c.prefix[s] + c.q_lens[s]);
  p.num_q_heads = c.q_heads;
  p.k_planes = {planes[0].codes.get(), planes[0].scale.get(), planes[0].zero.get(), nullptr, nullptr};
  p.v_planes = {planes[1].codes.get(), planes[1].scale.get(), planes[1].zero.get(), nullptr, nullptr};
  p.causal = c.causal;
  p.window = c.window;
  p.soft_cap = c.soft_cap;
  p.alibi_slopes = c.alibi ? slopes.get() : nullptr;
  p.sink_logits = c.sinks ? sinks.get() : nullptr;
  p.general_path = c.general;
  p.qk_int8 = c.int8;
  EXPECT_EQ(prefill_path(x.codec, p), x.path());
  p.workspace_bytes = prefill_workspace_bytes(x.codec, p);
  const Device<std::uint8_t> workspace(p.workspace_bytes);
  p.workspace = workspace.get();
  prefill(x.codec, p, nullptr);
  const std::vector<std::uint8_t> raw = out.host();
  std::vector<float> got(x.q.floats.size());
  to_float(raw.data(), c.dtype, got.size(), got.data());

  std::vector<std::vector<float>> want_k, want_v;
  for (const Side side : {Side::K, Side::V}) {
    const Planes& pl = planes[static_cast<std::size_t>(side)];
    const auto codes = pl.codes.host();
    const auto scale = pl.scale.host(), zero = pl.zero.host();
    const std::size_t bytes = x.codec.host(side).code_bytes();
    for (std::size_t s = 0; s < c.q_lens.size(); ++s) {
      const auto begin = static_cast<std::size_t>(x.cu_k[s]) * x.heads(), end = static_cast<std::size_t>(x.cu_k[s + 1]) * x.heads();
      const auto cut = [&](const auto& all, std::size_t width) {
        return std::vector(all.begin() + static_cast<std::ptrdiff_t>(begin * width),
                           all.begin() + static_cast<std::ptrdiff_t>(end * width));
      };
      (side == Side::K ? want_k : want_v)
          .push_back(x.decode_side(side, cut(codes, bytes), cut(scale, 1), cut(zero, 1), (end - begin) / x.heads()));
    }
  }
  EXPECT_LT(x.error(got, lse.host(), want_k, want_v), x.limit());
}

/// A paged prefix and new tokens: prefill directly, then update_and_attend on a copy of the cache; both against the reference.
void check_pages(const Case& c) {
  SCOPED_TRACE(std::string(c.spec) + " " + std::string(layout_name(c.kind)) + " d" + std::to_string(c.dim) + " pages");
  constexpr int kBlock = 16;
  Problem x(c);
  const PageLayout layout = make_layout(c.kind, x.spec, c.kv_heads, c.dim, kBlock);
  std::int64_t pages = 0, longest = 0, prefix_total = 0;
  for (std::size_t s = 0; s < c.q_lens.size(); ++s) {
    pages += (c.prefix[s] + c.q_lens[s] + kBlock - 1) / kBlock;
    longest = std::max<std::int64_t>(longest, c.prefix[s] + c.q_lens[s]);
    prefix_total += c.prefix[s];
  }
  std::vector<std::int32_t> order(static_cast<std::size_t>(pages));
  std::iota(order.begin(), order.end(), 0);
  std::shuffle(order.begin(), order.end(), x.random);
  const std::int64_t stride = (longest + kBlock - 1) / kBlock;
  std::vector<std::int32_t> table(c.q_lens.size() * static_cast<std::size_t>(stride), 0), prefix_lens, seq_lens;
  std::vector<std::int64_t> old_slots, new_slots, old_positions, new_positions;
  std::vector<std::vector<std::int64_t>> slots;
  std::size_t next = 0;
  for (std::size_t s = 0; s < c.q_lens.size(); ++s) {
    slots.emplace_back();
    prefix_lens.push_back(c.prefix[s]);
    seq_lens.push_back(c.prefix[s] + c.q_lens[s]);
    for (int t = 0; t < c.prefix[s] + c.q_lens[s]; ++t) {
      const std::size_t entry = s * static_cast<std::size_t>(stride) + static_cast<std::size_t>(t / kBlock);
      if (t % kBlock == 0) table[entry] = order[next++];
      slots.back().push_back(static_cast<std::int64_t>(table[entry]) * kBlock + t % kBlock);
      (t < c.prefix[s] ? old_slots : new_slots).push_back(slots.back().back());
      (t < c.prefix[s] ? old_positions : new_positions).push_back(t);
    }
  }
  const auto new_total = static_cast<std::size_t>(x.cu_q.back());
  const std::size_t new_values = new_total * x.heads() * x.dim(), old_values = static_cast<std::size_t>(prefix_total) * x.heads() * x.dim();
  const Values old_k = gaussian(old_values, DType::F16, x.random), old_v = gaussian(old_values, DType::F16, x.random);
  const Values new_k = gaussian(new_values, c.dtype, x.random), new_v = gaussian(new_values, c.dtype, x.random);
  const Device<std::uint8_t> cache(static_cast<std::size_t>(layout.block_stride * pages));
  cache.get();
  cuda_ok(cudaMemset(cache.get(), 0xff, cache.size()));
  const PagedCache paged{layout, cache.get(), pages};
  {
    const Device<std::uint8_t> dk(old_k.bytes), dv(old_v.bytes);
    const Device<std::int64_t> ds(old_slots), dp(old_positions);
    StoreParams s;
    s.k = dk.get();
    s.v = dv.get();
    s.n = prefix_total;
    s.slot_mapping = ds.get();
    s.positions = dp.get();
    s.cache = paged;
    store(x.codec, s, nullptr);
    synchronize();
  }
  const Device<std::uint8_t> dq(x.q.bytes), out(x.q.bytes.size()), dk(new_k.bytes), dv(new_v.bytes);
  const Device<float> lse(static_cast<std::size_t>(x.cu_q.back() * c.q_heads)), slopes(x.slopes), sinks(x.sinks);
  const Device<std::int32_t> cu_q(x.cu_q), dt(table), dl(prefix_lens), full(seq_lens);
  const Device<std::int64_t> mapping(new_slots), positions(new_positions);
  PrefillParams p;
  p.q = dq.get();
  p.dtype = c.dtype;
  p.out = out.get();
  p.lse = lse.get();
  p.num_seqs = static_cast<int>(c.q_lens.size());
  p.cu_q = cu_q.get();
  p.max_q_len = *std::max_element(c.q_lens.begin(), c.q_lens.end());
  p.max_kv_len = longest;
  p.num_q_heads = c.q_heads;
  p.k_new = dk.get();
  p.v_new = dv.get();
  p.cache = paged;
  p.block_table = dt.get();
  p.block_table_stride = stride;
  p.prefix_lens = dl.get();
  p.window = c.window;
  p.soft_cap = c.soft_cap;
  p.alibi_slopes = c.alibi ? slopes.get() : nullptr;
  p.sink_logits = c.sinks ? sinks.get() : nullptr;
  p.general_path = c.general;
  p.qk_int8 = c.int8;
  EXPECT_EQ(prefill_path(x.codec, p), x.path());
  p.workspace_bytes = prefill_workspace_bytes(x.codec, p);
  const Device<std::uint8_t> workspace(p.workspace_bytes);
  p.workspace = workspace.get();
  prefill(x.codec, p, nullptr);
  const auto floats_of = [&](const std::vector<std::uint8_t>& raw) {
    std::vector<float> values(x.q.floats.size());
    to_float(raw.data(), c.dtype, values.size(), values.data());
    return values;
  };
  const std::vector<float> got = floats_of(out.host());
  p.q = dq.get() + 2;  // not aligned to 16 bytes
  EXPECT_THROW(prefill(x.codec, p, nullptr), ::tq4::Error);

  // What the pages hold, then the new tokens as given.
  const auto attended = [&](bool new_from_pages) {
    const std::vector<std::uint8_t> bytes = cache.host();
    std::vector<std::vector<float>> result[2];
    for (std::size_t s = 0; s < c.q_lens.size(); ++s) {
      const auto n = static_cast<std::size_t>(seq_lens[s]), stored = new_from_pages ? n : static_cast<std::size_t>(c.prefix[s]);
      std::vector<std::uint8_t> codes[2];
      std::vector<float> scale[2], zero[2];
      for (const Side side : {Side::K, Side::V}) {
        const auto i = static_cast<std::size_t>(side);
        codes[i].resize(stored * x.heads() * x.codec.host(side).code_bytes());
        scale[i].resize(stored * x.heads());
        zero[i].resize(stored * x.heads());
      }
      read_pages(layout, bytes.data(), pages, slots[s].data(), static_cast<std::int64_t>(stored),
                 {codes[0].data(), scale[0].data(), zero[0].data(), nullptr, nullptr},
                 {codes[1].data(), scale[1].data(), zero[1].data(), nullptr, nullptr});
      for (const Side side : {Side::K, Side::V}) {
        const auto i = static_cast<std::size_t>(side);
        const std::vector<float> decoded = x.decode_side(side, codes[i], scale[i], zero[i], stored);
        const Values& fresh = side == Side::K ? new_k : new_v;
        std::vector<float> all;
        for (std::size_t h = 0; h < x.heads(); ++h) {
          all.insert(all.end(), decoded.begin() + static_cast<std::ptrdiff_t>(h * stored * x.dim()),
                     decoded.begin() + static_cast<std::ptrdiff_t>((h + 1) * stored * x.dim()));
          for (std::size_t t = stored; t < n; ++t) {
            const std::size_t row = (static_cast<std::size_t>(x.cu_q[s]) + t - static_cast<std::size_t>(c.prefix[s])) * x.heads() + h;
            all.insert(all.end(), fresh.floats.begin() + static_cast<std::ptrdiff_t>(row * x.dim()),
                       fresh.floats.begin() + static_cast<std::ptrdiff_t>((row + 1) * x.dim()));
          }
        }
        result[i].push_back(all);
      }
    }
    return std::pair(result[0], result[1]);
  };
  const auto [k, v] = attended(false);
  EXPECT_LT(x.error(got, lse.host(), k, v), x.limit());

  LayerStepParams step;
  step.q = dq.get();
  step.k = dk.get();
  step.v = dv.get();
  step.dtype = c.dtype;
  step.out = out.get();
  step.num_seqs = p.num_seqs;
  step.total = static_cast<std::int64_t>(new_total);
  step.cu_q = cu_q.get();
  step.max_q_len = p.max_q_len;
  step.uniform = std::adjacent_find(c.q_lens.begin(), c.q_lens.end(), std::not_equal_to<>()) == c.q_lens.end();
  step.num_q_heads = c.q_heads;
  step.slot_mapping = mapping.get();
  step.positions = positions.get();
  step.cache = paged;
  step.block_table = dt.get();
  step.block_table_stride = stride;
  step.seq_lens = full.get();
  step.max_seq_len = longest;
  step.window = c.window;
  step.soft_cap = c.soft_cap;
  step.alibi_slopes = p.alibi_slopes;
  step.sink_logits = p.sink_logits;
  LayerStepParams before = step;  // one workspace serves steps that prefill and steps that decode, one behind the other
  before.uniform = false;
  step.workspace_bytes = std::max(layer_step_workspace_bytes(x.codec, step), layer_step_workspace_bytes(x.codec, before));
  const Device<std::uint8_t> step_workspace(std::vector<std::uint8_t>(step.workspace_bytes));
  step.workspace = before.workspace = step_workspace.get();
  before.workspace_bytes = step.workspace_bytes;
  update_and_attend(x.codec, before, nullptr);
  if (layer_step_path(x.codec, step).find("fused") != std::string::npos) {
    std::vector<std::uint8_t> left = step_workspace.host();
    left.resize(layer_step_workspace_bytes(x.codec, step));
    EXPECT_EQ(std::count(left.begin(), left.end(), 0), std::ssize(left)) << "the fused kernel's part is not zero";
  }
  update_and_attend(x.codec, step, nullptr);
  const bool decodes = layer_step_path(x.codec, step) != "store+prefill";
  EXPECT_EQ(decodes, step.uniform && step.max_q_len <= 16);
  const std::vector<float> stepped = floats_of(out.host());
  const auto [sk, sv] = attended(decodes);
  EXPECT_LT(x.error(stepped, {}, sk, sv), x.limit()) << layer_step_path(x.codec, step);

  // The same as fp8.
  const Device<float> scale(std::vector<float>{0.01f});
  const Device<std::uint8_t> fp8(x.q.floats.size());
  step.out = fp8.get();
  step.out_fp8_scale = scale.get();
  step.workspace_bytes = layer_step_workspace_bytes(x.codec, step);
  const Device<std::uint8_t> fp8_workspace(std::vector<std::uint8_t>(step.workspace_bytes));
  step.workspace = fp8_workspace.get();
  update_and_attend(x.codec, step, nullptr);
  const std::vector<std::uint8_t> bytes = fp8.host();
  for (std::size_t i = 0; i < bytes.size(); ++i) ASSERT_EQ(bytes[i], float_to_e4m3(stepped[i] * (1.0f / 0.01f))) << i;
}

TEST(Prefill, FromPlanes) {
  TQ4_REQUIRE_DEVICE();
  for (const bool causal : {true, false}) {
    for (const int dim : {64, 96, 128, 256}) {
      Case c;
      c.dim = dim;
      c.causal = causal;
      check_planes(c);
    }
  }
  for (const char* spec : {"k4v3", "tq2", "k8v4", "vllm:4bit_nc", "tq4-2d"}) {
    Case c;
    c.spec = spec;
    c.dtype = DType::BF16;
    check_planes(c);
  }
  Case calibrated;
  calibrated.calibration = {true, true, true};
  check_planes(calibrated);
}

TEST(Prefill, BehindAPagedPrefix) {
  TQ4_REQUIRE_DEVICE();
  for (const int dim : {64, 80, 128, 256}) {
    Case c;
    c.dim = dim;
    check_pages(c);
  }
  Case other;
  other.spec = "vllm:3bit_nc";
  other.kind = LayoutKind::Vllm;
  other.dtype = DType::BF16;
  check_pages(other);
  other.spec = "turboquant-vllm";
  other.kind = LayoutKind::TurboquantVllm;
  check_pages(other);
  Case calibrated;
  calibrated.calibration = {true, true, true};
  check_pages(calibrated);
}

TEST(Prefill, Options) {
  TQ4_REQUIRE_DEVICE();
  Case c;
  c.q_heads = 14;
  c.window = 40;
  check_pages(c);
  c.window = 0;
  c.soft_cap = 4;
  check_pages(c);
  c.alibi = true;
  c.sinks = true;
  check_pages(c);
  c.window = 70;
  check_planes(c);
}

/// The kernel that other GPUs take, where Hopper's would serve.
TEST(Prefill, GeneralPath) {
  TQ4_REQUIRE_DEVICE();
  for (const int dim : {64, 128}) {
    Case c;
    c.dim = dim;
    c.general = true;
    c.window = dim == 64 ? 0 : 90;
    check_planes(c);
    check_pages(c);
  }
}

/// Planes without a key, and no keys but a promise of some: zeros, and the LSE of an empty sum.
TEST(Prefill, NoKeys) {
  TQ4_REQUIRE_DEVICE();
  for (const bool int8 : {false, true}) {
    for (const int dim : {64, 96, 128}) {
      for (const int most : {0, 300}) {
        SCOPED_TRACE(std::to_string(dim) + (int8 ? " int8 " : " ") + std::to_string(most));
        Case c;
        c.dim = dim;
        c.int8 = int8;
        c.prefix = {0, 0};
        c.q_lens = {70, 130};
        c.causal = false;
        const Problem x(c);
        if (int8 && (dim != 128 || x.path() == "general")) continue;
        const Device<std::uint8_t> q(x.q.bytes), codes(64), out(std::vector<std::uint8_t>(x.q.bytes.size(), 0xff));
        const Device<float> scale(4), lse(std::vector<float>(static_cast<std::size_t>(x.cu_q.back() * c.q_heads), 7.0f));
        const Device<std::int32_t> cu_q(x.cu_q), cu_k(std::vector<std::int32_t>(c.q_lens.size() + 1, 0));
        PrefillParams p;
        p.q = q.get();
        p.out = out.get();
        p.lse = lse.get();
        p.num_seqs = static_cast<int>(c.q_lens.size());
        p.cu_q = cu_q.get();
        p.cu_k = cu_k.get();
        p.max_q_len = 130;
        p.max_kv_len = most;
        p.num_q_heads = c.q_heads;
        p.k_planes = p.v_planes = {codes.get(), scale.get(), scale.get(), nullptr, nullptr};
        p.causal = false;
        p.qk_int8 = int8;
        p.workspace_bytes = prefill_workspace_bytes(x.codec, p);
        const Device<std::uint8_t> workspace(std::vector<std::uint8_t>(p.workspace_bytes, 0xff));
        p.workspace = workspace.get();
        prefill(x.codec, p, nullptr);
        for (const std::uint8_t byte : out.host()) ASSERT_EQ(byte, 0);
        for (const float v : lse.host()) ASSERT_EQ(v, -INFINITY);
      }
    }
  }
}

/// Many tiles of keys, the queries over several blocks, groups of other sizes; windows that begin within and between tiles.
TEST(Prefill, LongerThanItsStages) {
  TQ4_REQUIRE_DEVICE();
  for (const int dim : {64, 128}) {
    Case c;
    c.dim = dim;
    c.q_heads = 3, c.kv_heads = 1;
    c.prefix = {700, 0, 127};
    c.q_lens = {90, 130, 1};
    c.sinks = dim == 64;
    check_planes(c);
    c.window = 200;
    check_planes(c);
    c.causal = false;
    check_planes(c);
  }
}

/// Logits from int8 queries and keys: another limit, and no service without Hopper.
TEST(Prefill, Int8Logits) {
  TQ4_REQUIRE_DEVICE();
  Case c;
  c.int8 = true;
  {
    Problem x(c);
    PrefillParams p;
    p.qk_int8 = true;
    p.num_q_heads = c.q_heads;
    p.soft_cap = 1.0f;
    EXPECT_THROW(prefill_path(x.codec, p), ::tq4::Error);
    p.soft_cap = 0;
    if (x.path() == "general") {
      EXPECT_THROW(prefill_path(x.codec, p), ::tq4::Error);
      return;
    }
  }
  check_planes(c);
  check_pages(c);
  c.dtype = DType::BF16;
  c.q_heads = 2;
  c.prefix = {300, 5};
  c.q_lens = {70, 130};
  c.window = 150;
  c.sinks = true;
  check_planes(c);
  c.causal = false;
  c.window = 0;
  check_planes(c);
}

TEST(LayerStep, DecodesWhenTheStepIsShort) {
  TQ4_REQUIRE_DEVICE();
  Case c;
  c.q_lens = {1, 1, 1};
  check_pages(c);
  c.q_lens = {4, 4, 4};
  c.dtype = DType::BF16;
  check_pages(c);
  c.q_lens = {17, 17, 17};
  check_pages(c);
  Case slots;
  slots.spec = "vllm:4bit_nc";
  slots.kind = LayoutKind::Vllm;
  for (const int tokens : {1, 2}) {
    slots.q_lens = {tokens, tokens, tokens};
    check_pages(slots);
  }
}

}  // namespace
}  // namespace tq4::gpu
