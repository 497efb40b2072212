// store against encode on the CPU followed by write_pages, in every layout, padded or with swapped axes: `sequential` gives the same pages byte for
// byte; the tensor cores flip coordinates next to a boundary (flips.h) and nothing else. Skipped slots and foreign bytes stay as they were.
#include <algorithm>
#include <numeric>
#include <string_view>

#include "gpu/flips.h"
#include "gpu/gpu_test.h"
#include "tq4/layout.h"

namespace tq4::gpu {
namespace {

struct Case {
  const char* spec;
  LayoutKind kind;
  int dim, block_size;
  enum Variant { Dense, Padded, Swapped } variant;
};

PageLayout layout_of(const Case& c, int heads) {
  const CodecSpec spec = spec_from_name(c.spec);
  PageLayout layout = c.variant == Case::Padded && c.kind == LayoutKind::TurboquantVllm
                          ? padded_turboquant_vllm_layout(spec, heads, c.dim, c.block_size)
                          : make_layout(c.kind, spec, heads, c.dim, c.block_size);
  if (c.variant == Case::Swapped) {  // [blocks, heads, tokens, slot]
    layout.token_stride = layout.head_stride;
    layout.head_stride = layout.token_stride * c.block_size;
  }
  if (c.variant == Case::Padded && c.kind != LayoutKind::TurboquantVllm) layout.block_stride += 256;
  return layout;
}

/// n of `slots` slots, in random order.
std::vector<std::int64_t> shuffled_slots(std::int64_t slots, std::int64_t n, Random& random) {
  std::vector<std::int64_t> order(static_cast<std::size_t>(slots));
  std::iota(order.begin(), order.end(), std::int64_t{0});
  std::shuffle(order.begin(), order.end(), random);
  order.resize(static_cast<std::size_t>(n));
  return order;
}

class Store : public testing::TestWithParam<Case> {};

TEST_P(Store, GivesThePagesOfTheCpu) {
  TQ4_REQUIRE_DEVICE();
  const Case& c = GetParam();
  constexpr int kHeads = 3, kBlocks = 7;
  Random random(11);
  const PageLayout layout = layout_of(c, kHeads);
  const DeviceCodec codec(layout.spec, c.dim, kHeads);
  const auto dim = static_cast<std::size_t>(c.dim);
  std::vector<std::uint8_t> pages(static_cast<std::size_t>(layout.block_stride * kBlocks), 0x5a);
  const Device<std::uint8_t> cache(pages), tensor_cache(pages);
  std::vector<std::uint8_t> tensor_pages = pages;
  Flips flips;
  std::size_t coded = 0;
  for (const std::int64_t n : {std::int64_t{1}, std::int64_t{9}, std::int64_t{kBlocks} * c.block_size}) {
    std::vector<std::int64_t> slots = shuffled_slots(kBlocks * c.block_size, n, random);
    if (n > 4) slots[3] = -1;
    const std::size_t count = static_cast<std::size_t>(n) * kHeads;
    const Values k = gaussian(count * dim, DType::F16, random), v = gaussian(count * dim, DType::F16, random);
    const Device<std::uint8_t> dk(k.bytes), dv(v.bytes);
    const Device<std::int64_t> device_slots(slots);
    StoreParams p;
    p.k = dk.get();
    p.v = dv.get();
    p.n = n;
    p.slot_mapping = device_slots.get();
    p.cache = {layout, tensor_cache.get(), kBlocks};
    store(codec, p, nullptr);
    p.cache = {layout, cache.get(), kBlocks};
    p.sequential = true;
    store(codec, p, nullptr);

    struct Planes {
      std::vector<std::uint8_t> codes;
      std::vector<float> scale, zero;
    };
    const auto encoded = [&](Side side, const Values& x) {
      Planes out{std::vector<std::uint8_t>(count * codec.host(side).code_bytes()), std::vector<float>(count), std::vector<float>(count)};
      codec.host(side).encode(x.bytes.data(), x.dtype, static_cast<std::int64_t>(count),
                              {out.codes.data(), out.scale.data(), out.zero.data(), nullptr, nullptr});
      return out;
    };
    const Planes ek = encoded(Side::K, k), ev = encoded(Side::V, v);
    write_pages(layout, {ek.codes.data(), ek.scale.data(), ek.zero.data(), nullptr, nullptr},
                {ev.codes.data(), ev.scale.data(), ev.zero.data(), nullptr, nullptr}, slots.data(), n, pages.data(), kBlocks);
    EXPECT_EQ(cache.host(), pages) << "n " << n;

    // What the tensor cores stored, read back, against the CPU's; written again it must be all that changed.
    const auto stored = tensor_cache.host();
    Planes gk{std::vector<std::uint8_t>(ek.codes.size(), 0), std::vector<float>(count), std::vector<float>(count)};
    Planes gv{std::vector<std::uint8_t>(ev.codes.size(), 0), std::vector<float>(count), std::vector<float>(count)};
    std::vector<std::int64_t> readable = slots;  // a skipped token has nothing to read: its row is the CPU's
    for (std::int64_t& slot : readable) slot = std::max<std::int64_t>(slot, 0);
    const auto out_of = [](Planes& x) { return EncodedOut{x.codes.data(), x.scale.data(), x.zero.data(), nullptr, nullptr}; };
    read_pages(layout, stored.data(), kBlocks, readable.data(), n, out_of(gk), out_of(gv));
    write_pages(layout, {gk.codes.data(), gk.scale.data(), gk.zero.data(), nullptr, nullptr},
                {gv.codes.data(), gv.scale.data(), gv.zero.data(), nullptr, nullptr}, slots.data(), n, tensor_pages.data(), kBlocks);
    EXPECT_EQ(stored, tensor_pages) << "n " << n;
    for (std::size_t token = 0; token < slots.size(); ++token) {
      if (slots[token] < 0) continue;
      const std::size_t at = token * kHeads;
      for (const Side side : {Side::K, Side::V}) {
        const Planes &want = side == Side::K ? ek : ev, &got = side == Side::K ? gk : gv;
        const Codec& host = codec.host(side);
        const auto in = [&](const Planes& x) {
          return EncodedIn{x.codes.data() + at * host.code_bytes(), x.scale.data() + at, x.zero.data() + at, nullptr, nullptr};
        };
        flips += count_flips(host, {}, (side == Side::K ? k : v).floats.data() + at * dim, kHeads, in(want), in(got));
        coded += kHeads * dim;
      }
    }
  }
  EXPECT_EQ(flips.wrong, 0u) << "farthest " << flips.farthest;
  EXPECT_LE(flips.codes, 2 + coded / 20000);
}

/// Many tokens at once go through another kernel than a step.
TEST(Store, ManyTokensAreThoseOfAFew) {
  TQ4_REQUIRE_DEVICE();
  Random random(4);
  constexpr int kHeads = 2, kDim = 128, kBlockSize = 16;
  for (const char* name :
       {"tq4", "k4v3", "k8v4", "hadamard k4v3", "hadamard k8v4", "vllm:4bit_nc", "turboquant-vllm", "turboquant-vllm-k3v2"}) {
    const std::string_view text = name;
    const bool hadamard = text.starts_with("hadamard ");
    CodecSpec spec = spec_from_name(hadamard ? text.substr(9) : text);
    if (hadamard) {
      spec.v.rotation = RotationKind::Hadamard;
      if (spec.k.rotation != RotationKind::None) spec.k.rotation = RotationKind::HadamardSigned;
    }
    const DeviceCodec codec(spec, kDim, kHeads);
    const LayoutKind kind = text.starts_with("turboquant") ? LayoutKind::TurboquantVllm : LayoutKind::Native;
    const PageLayout layout = make_layout(kind, spec, kHeads, kDim, kBlockSize);
    const std::int64_t n = 64 * codec.device().sm_count / (2 * kHeads) + 37, blocks = (n + kBlockSize - 1) / kBlockSize;
    std::vector<std::int64_t> slots = shuffled_slots(n, n, random);
    slots[10] = -1;
    const std::size_t elements = static_cast<std::size_t>(n) * kHeads * kDim;
    const Values k = gaussian(elements, DType::F16, random), v = gaussian(elements, DType::F16, random);
    const Device<std::uint8_t> dk(k.bytes), dv(v.bytes),
        whole(std::vector<std::uint8_t>(static_cast<std::size_t>(layout.block_stride * blocks))),
        parts(std::vector<std::uint8_t>(static_cast<std::size_t>(layout.block_stride * blocks)));
    const Device<std::int64_t> device_slots(slots);
    StoreParams p;
    p.k = dk.get();
    p.v = dv.get();
    p.n = n;
    p.slot_mapping = device_slots.get();
    p.cache = {layout, whole.get(), blocks};
    store(codec, p, nullptr);
    p.cache = {layout, parts.get(), blocks};
    for (std::int64_t first = 0; first < n; first += 20) {
      StoreParams some = p;
      some.k = dk.get() + first * kHeads * kDim * 2;
      some.v = dv.get() + first * kHeads * kDim * 2;
      some.n = std::min<std::int64_t>(20, n - first);
      some.slot_mapping = device_slots.get() + first;
      store(codec, some, nullptr);
    }
    const auto a = whole.host(), b = parts.host();
    std::size_t differing = 0;
    for (std::size_t i = 0; i < a.size(); ++i) differing += a[i] != b[i] ? 1 : 0;
    EXPECT_LE(differing, 2 + elements / 20000) << name;
  }
}

std::string case_name(const testing::TestParamInfo<Case>& info) {
  const Case& c = info.param;
  std::string name = std::string(c.spec) + "_" + std::string(layout_name(c.kind)) + "_d" + std::to_string(c.dim) + "_b" +
                     std::to_string(c.block_size) +
                     (c.variant == Case::Padded    ? "_padded"
                      : c.variant == Case::Swapped ? "_swapped"
                                                   : "");
  for (char& ch : name) {
    if (!std::isalnum(static_cast<unsigned char>(ch))) ch = '_';
  }
  return name;
}

constexpr LayoutKind kNative = LayoutKind::Native, kTqv = LayoutKind::TurboquantVllm, kVllm = LayoutKind::Vllm;
INSTANTIATE_TEST_SUITE_P(
    Layouts, Store,
    testing::Values(Case{"tq4", kNative, 128, 16, Case::Dense}, Case{"tq4", kNative, 96, 32, Case::Dense},
                    Case{"k4v3", kNative, 128, 16, Case::Padded}, Case{"tq3", kNative, 64, 16, Case::Dense},
                    Case{"k8v4", kNative, 80, 48, Case::Dense}, Case{"tq2", kNative, 256, 16, Case::Dense},
                    Case{"fp16", kNative, 64, 16, Case::Dense}, Case{"fp8", kNative, 128, 64, Case::Dense},
                    Case{"tq6", kNative, 32, 16, Case::Dense}, Case{"k2.5v4", kNative, 128, 16, Case::Dense},
                    Case{"vllm:4bit_nc", kNative, 128, 16, Case::Dense}, Case{"turboquant-vllm", kTqv, 128, 16, Case::Dense},
                    Case{"turboquant-vllm", kTqv, 128, 16, Case::Padded}, Case{"turboquant-vllm-k3v4", kTqv, 96, 16, Case::Dense},
                    Case{"turboquant-vllm-k4v2", kTqv, 72, 32, Case::Padded}, Case{"turboquant-vllm-k3v4", kTqv, 128, 16, Case::Dense},
                    Case{"turboquant-vllm-k4v2", kTqv, 64, 16, Case::Padded}, Case{"turboquant-vllm", kTqv, 256, 16, Case::Dense},
                    Case{"vllm:k8v4", kVllm, 128, 16, Case::Dense}, Case{"vllm:4bit_nc", kVllm, 128, 16, Case::Swapped},
                    Case{"vllm:k3v4_nc", kVllm, 64, 16, Case::Dense}, Case{"vllm:3bit_nc", kVllm, 128, 32, Case::Dense},
                    Case{"vllm:3bit_nc", kVllm, 96, 16, Case::Swapped}),
    case_name);

TEST(Store, StridesOfKAndVMayDiffer) {
  TQ4_REQUIRE_DEVICE();
  Random random(2);
  constexpr std::size_t kTokens = 12, kHeads = 2, kDim = 64;
  const CodecSpec spec = spec_from_name("tq4");
  const DeviceCodec codec(spec, kDim, kHeads);
  const PageLayout layout = make_layout(LayoutKind::Native, spec, kHeads, kDim, 16);
  // One fused projection [tokens][k heads, v heads][D], as engines keep it.
  const Values qkv = gaussian(kTokens * 2 * kHeads * kDim, DType::BF16, random);
  std::vector<float> k, v;
  for (std::size_t t = 0; t < kTokens; ++t) {
    const auto row = qkv.floats.begin() + static_cast<std::ptrdiff_t>(t * 2 * kHeads * kDim);
    k.insert(k.end(), row, row + kHeads * kDim);
    v.insert(v.end(), row + kHeads * kDim, row + 2 * kHeads * kDim);
  }
  std::vector<std::int64_t> slots(kTokens);
  for (std::size_t i = 0; i < kTokens; ++i) slots[i] = static_cast<std::int64_t>(kTokens - 1 - i);
  const Device<std::uint8_t> x(qkv.bytes), a(std::vector<std::uint8_t>(static_cast<std::size_t>(layout.block_stride))),
      b(std::vector<std::uint8_t>(static_cast<std::size_t>(layout.block_stride)));
  const Device<float> dk(k), dv(v);
  const Device<std::int64_t> device_slots(slots);
  StoreParams p;
  p.k = x.get();
  p.v = x.get() + kHeads * kDim * 2;
  p.dtype = DType::BF16;
  p.n = kTokens;
  p.k_token_stride = p.v_token_stride = 2 * kHeads * kDim;
  p.k_head_stride = p.v_head_stride = kDim;
  p.slot_mapping = device_slots.get();
  p.cache = {layout, a.get(), 1};
  store(codec, p, nullptr);
  StoreParams dense;
  dense.k = dk.get();
  dense.v = dv.get();
  dense.dtype = DType::F32;
  dense.n = kTokens;
  dense.slot_mapping = device_slots.get();
  dense.cache = {layout, b.get(), 1};
  store(codec, dense, nullptr);
  EXPECT_EQ(a.host(), b.host());
}

}  // namespace
}  // namespace tq4::gpu
