// The uncompressed baseline must itself be right, or ratios to it mean nothing.
#include <cmath>
#include <numeric>

#include "cuda/baseline/paged_decode.h"
#include "gpu/gpu_test.h"
#include "tq4/attention.h"
#include "tq4/error.h"

namespace tq4::gpu {
namespace {

/// `splits`: BaselineParams::splits of each call, one behind the other on one workspace a number.
void check(bool fp8, int dim, int group, int block_size, const std::vector<std::int32_t>& lengths, const std::vector<int>& splits = {0}) {
  SCOPED_TRACE((fp8 ? "fp8 d" : "fp16 d") + std::to_string(dim) + " group " + std::to_string(group));
  constexpr int kHeads = 2;
  Random random(4);
  const auto d = static_cast<std::size_t>(dim);
  std::int64_t pages = 0;
  std::int32_t longest = 1;
  for (const std::int32_t n : lengths) pages += (n + block_size - 1) / block_size, longest = std::max(longest, n);
  const std::size_t elements = static_cast<std::size_t>(pages * kHeads * block_size) * d;
  // Slots past a sequence's end stay NaN.
  std::vector<float> k(elements, NAN), v(elements, NAN);
  const std::int64_t stride = (longest + block_size - 1) / block_size;
  std::vector<std::int32_t> table(lengths.size() * static_cast<std::size_t>(stride)), order(static_cast<std::size_t>(pages));
  std::iota(order.begin(), order.end(), 0);
  std::shuffle(order.begin(), order.end(), random);
  std::normal_distribution<float> normal;
  std::vector<std::vector<float>> ks, vs;
  std::size_t next = 0;
  for (std::size_t s = 0; s < lengths.size(); ++s) {
    const auto n = static_cast<std::size_t>(lengths[s]);
    ks.emplace_back(kHeads * n * d);
    vs.emplace_back(kHeads * n * d);
    for (std::size_t t = 0; t < n; ++t) {
      if (t % static_cast<std::size_t>(block_size) == 0)
        table[s * static_cast<std::size_t>(stride) + t / static_cast<std::size_t>(block_size)] = order[next++];
      const auto page = static_cast<std::size_t>(table[s * static_cast<std::size_t>(stride) + t / static_cast<std::size_t>(block_size)]);
      for (std::size_t h = 0; h < kHeads; ++h) {
        for (std::size_t j = 0; j < d; ++j) {
          const std::size_t at =
              ((page * kHeads + h) * static_cast<std::size_t>(block_size) + t % static_cast<std::size_t>(block_size)) * d + j;
          const auto rounded = [&] {
            const float x = normal(random);
            return fp8 ? e4m3_to_float(float_to_e4m3(x)) : half_to_float(float_to_half(x));
          };
          ks.back()[(h * n + t) * d + j] = k[at] = rounded();
          vs.back()[(h * n + t) * d + j] = v[at] = rounded();
        }
      }
    }
  }
  const auto bytes_of = [&](const std::vector<float>& x) {
    std::vector<std::uint8_t> bytes(x.size() * (fp8 ? 1 : 2));
    if (fp8) {
      for (std::size_t i = 0; i < x.size(); ++i) bytes[i] = float_to_e4m3(x[i]);
    } else {
      from_float(x.data(), x.size(), DType::F16, bytes.data());
    }
    return bytes;
  };
  const Device<std::uint8_t> dk(bytes_of(k)), dv(bytes_of(v));
  const Values q = gaussian(lengths.size() * static_cast<std::size_t>(kHeads * group) * d, DType::F16, random);
  const Device<std::uint8_t> dq(q.bytes);
  Device<std::uint8_t> out(q.bytes.size());
  const Device<std::int32_t> dt(table), dl(lengths);
  BaselineParams p;
  p.q = dq.get();
  p.out = out.get();
  p.k = dk.get();
  p.v = dv.get();
  p.fp8 = fp8;
  p.num_seqs = static_cast<int>(lengths.size());
  p.num_q_heads = kHeads * group;
  p.num_kv_heads = kHeads;
  p.head_dim = dim;
  p.block_size = block_size;
  p.block_table = dt.get();
  p.block_table_stride = stride;
  p.seq_lens = dl.get();
  p.max_seq_len = longest;
  const DeviceInfo device = device_info(0);
  std::vector<std::vector<double>> want;
  for (std::size_t s = 0; s < lengths.size(); ++s) {
    const std::size_t row = static_cast<std::size_t>(kHeads * group) * d;
    want.emplace_back(row);
    reference_attention(q.floats.data() + s * row, ks[s].data(), vs[s].data(), 1, lengths[s], kHeads * group, kHeads, dim, {},
                        want.back().data(), nullptr);
  }
  for (const int n : splits) {
    SCOPED_TRACE("splits " + std::to_string(n));
    p.splits = n;
    p.workspace_bytes = baseline_workspace_bytes(p, device);
    Device<std::uint8_t> workspace(p.workspace_bytes);
    workspace.fill(0);
    p.workspace = workspace.get();
    std::vector<std::uint8_t> first;
    for (const bool again : {false, true}) {  // the second call finds what the first left in the workspace
      out.fill(0xa5);
      baseline_decode(p, device, nullptr);
      const std::vector<std::uint8_t> raw = out.host();
      if (again) {
        EXPECT_EQ(raw, first);
        continue;
      }
      first = raw;
      std::vector<float> got(q.floats.size());
      to_float(raw.data(), DType::F16, got.size(), got.data());
      double error = 0, norm = 0;
      for (std::size_t i = 0; i < got.size(); ++i) {
        const std::vector<double>& w = want[i / want[0].size()];
        const double difference = static_cast<double>(got[i]) - w[i % w.size()];
        error += difference * difference;
        norm += w[i % w.size()] * w[i % w.size()];
      }
      EXPECT_LT(std::sqrt(error / norm), 1e-3);
    }
  }
}

TEST(Baseline, IsRight) {
  TQ4_REQUIRE_DEVICE();
  for (const bool fp8 : {false, true}) {
    for (const int dim : {16, 64, 80, 96, 128, 192, 256}) check(fp8, dim, 4, 16, {1, 17, 300, 1000, 0});
    check(fp8, 128, 7, 64, {513});
    check(fp8, 128, 16, 32, {5000, 40});
    check(fp8, 128, 1, 16, {16, 64, 65, 0});
  }
}

TEST(Baseline, AnyNumberOfSplitsGivesTheSame) {
  TQ4_REQUIRE_DEVICE();
  for (const bool fp8 : {false, true}) check(fp8, 128, 4, 16, {2100, 0, 700, 130}, {1, 2, 5, 17, 33, 128});
}

TEST(Baseline, RefusesByName) {
  TQ4_REQUIRE_DEVICE();
  const DeviceInfo device = device_info(0);
  BaselineParams p;
  p.num_seqs = 1;
  p.num_q_heads = p.num_kv_heads = 1;
  p.head_dim = 72;
  EXPECT_THROW(baseline_decode(p, device, nullptr), Error);
  p.head_dim = 64;
  p.num_q_heads = 17;
  EXPECT_THROW(baseline_decode(p, device, nullptr), Error);
  p.num_q_heads = 1;
  p.max_seq_len = 100;
  EXPECT_THROW(baseline_decode(p, device, nullptr), Error);  // no workspace
}

}  // namespace
}  // namespace tq4::gpu
