// Pages against what the peers' own kernels wrote, both ways: our encoder and writer must give their bytes, our reader and decoder their
// values, and attention over their pages their outputs. A code may differ only where the coordinate lies within 1e-5 of a boundary (two
// float32 summations in different order); those are counted and printed.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdio>
#include <cstring>
#include <string>

#include "../unit/codec/vectors.h"
#include "core/pack.h"
#include "golden_file.h"
#include "tq4/attention.h"
#include "tq4/layout.h"

namespace tq4 {
namespace {

using golden::File;
using test::Planes;

constexpr int kBlockSize = 16;

/// Slot of every token of the one sequence in the file.
std::vector<std::int64_t> slots_of(const File& file, const std::string& group, std::int64_t tokens) {
  const auto table = file.read<std::int32_t>(group + "/block_table");
  std::vector<std::int64_t> slots;
  for (std::int64_t t = 0; t < tokens; ++t) slots.push_back(table[static_cast<std::size_t>(t / kBlockSize)] * kBlockSize + t % kBlockSize);
  return slots;
}

std::vector<std::uint8_t> codes_of(const Codec& codec, const std::vector<std::uint8_t>& packed) {
  const std::size_t rows = packed.size() / codec.code_bytes(), dim = static_cast<std::size_t>(codec.head_dim());
  std::vector<std::uint8_t> codes(rows * dim);
  for (std::size_t r = 0; r < rows; ++r)
    core::unpack_codes(packed.data() + r * codec.code_bytes(), dim, codec.spec().bits, codes.data() + r * dim);
  return codes;
}

/// float32 to E4M3 as Triton's CPU interpreter does it, which the FP8 bytes of the file were written under: half rounds away from zero,
/// a mantissa that rounds up to the next power of two loses its carry where the exponent is odd (1.97 becomes 1.0), and subnormals drop a
/// bit after rounding. A GPU rounds to nearest even, as our codec does; the file's keys are checked against this to show that nothing else differs.
std::uint8_t interpreter_e4m3(float value) {
  std::uint32_t bits = 0;
  std::memcpy(&bits, &value, sizeof(bits));
  const int exponent = std::min(static_cast<int>(bits >> 23 & 255) - 127 + 7, 15);
  const auto significand = static_cast<int>((bits >> 20 & 7) + (bits >> 19 & 1));
  const int magnitude = exponent > 0 ? exponent << 3 | significand : -exponent < 8 ? (significand >> 1 | 4) >> -exponent : 0;
  return static_cast<std::uint8_t>(magnitude | (bits >> 31 ? 128 : 0));
}

/// Keys of the FP8 preset: ours are the correctly rounded bytes, theirs the interpreter's. Returns how many differ.
int count_interpreter_bytes(const std::vector<float>& x, const Planes& ours, const Planes& theirs) {
  int differing = 0;
  for (std::size_t i = 0; i < x.size(); ++i) {
    EXPECT_EQ(theirs.codes[i], interpreter_e4m3(x[i])) << i << ": " << x[i];
    EXPECT_EQ(ours.codes[i], float_to_e4m3(x[i])) << i << ": " << x[i];
    if (ours.codes[i] == theirs.codes[i]) continue;
    ++differing;
    EXPECT_LE(std::abs(e4m3_to_float(ours.codes[i]) - x[i]), std::abs(e4m3_to_float(theirs.codes[i]) - x[i])) << i << ": " << x[i];
  }
  return differing;
}

/// Codes that differ between ours and theirs; each must lie within 1e-5 of a boundary (in double, from the vector itself).
int count_boundary_codes(const Codec& codec, const std::vector<float>& x, const Planes& ours, const Planes& theirs,
                         const std::string& what) {
  const std::vector<std::uint8_t> a = codes_of(codec, ours.codes), b = codes_of(codec, theirs.codes);
  const auto dim = static_cast<std::size_t>(codec.head_dim());
  int differing = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    if (a[i] == b[i]) continue;
    ++differing;
    const float* row = x.data() + i / dim * dim;
    double position = 0, distance = 1;
    if (codec.spec().kind == CodeKind::Mse) {
      double norm = 0, y = 0;
      for (std::size_t j = 0; j < dim; ++j) {
        norm += static_cast<double>(row[j]) * static_cast<double>(row[j]);
        y += static_cast<double>(codec.rotation().matrix[i % dim * dim + j]) * static_cast<double>(row[j]);
      }
      position = norm == 0 ? 0 : y / std::sqrt(norm);
      for (const double boundary : codec.codebook().boundaries) distance = std::min(distance, std::abs(position - boundary));
    }
    EXPECT_LE(distance, 1e-5) << what << " vector " << i / dim << " coordinate " << i % dim << " at " << position << ": code " << int(a[i])
                              << ", theirs " << int(b[i]);
  }
  return differing;
}

std::vector<float> head_major(const std::vector<float>& token_major, std::size_t tokens, std::size_t heads, std::size_t dim) {
  std::vector<float> out(token_major.size());
  for (std::size_t t = 0; t < tokens; ++t) {
    for (std::size_t h = 0; h < heads; ++h)
      std::memcpy(&out[(h * tokens + t) * dim], &token_major[(t * heads + h) * dim], dim * sizeof(float));
  }
  return out;
}

/// max |a - b| / max |b|.
template <class A, class B>
double worst(const std::vector<A>& a, const std::vector<B>& b) {
  double error = 0, largest = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    error = std::max(error, std::abs(static_cast<double>(a[i]) - static_cast<double>(b[i])));
    largest = std::max(largest, std::abs(static_cast<double>(b[i])));
  }
  return error / largest;
}

/// What one golden page cache offers, and the checks every kind of page goes through.
struct PageCase {
  std::string name;
  PageLayout layout;
  Codec k, v;
  std::vector<float> k_in, v_in;  ///< [tokens, heads, dim]
  std::vector<std::uint8_t> cache;
  std::int64_t blocks, tokens;
  std::vector<std::int64_t> slots;

  PageCase(const File& file, const std::string& group, const std::string& inputs, LayoutKind kind, const CodecSpec& spec, int dim)
      : name(group), k(spec.k, dim), v(spec.v, dim) {
    const auto k_array = file.read<float>(inputs + "/k");
    k_in = k_array.data;
    v_in = file.read<float>(inputs + "/v").data;
    layout = make_layout(kind, spec, static_cast<int>(k_array.shape[1]), dim, kBlockSize);
    const auto cache_array = file.read<std::uint8_t>(group + "/cache");
    cache = cache_array.data;
    blocks = static_cast<std::int64_t>(cache_array.shape[0]);
    tokens = static_cast<std::int64_t>(k_array.shape[0]);
    EXPECT_EQ(static_cast<std::int64_t>(cache.size()), blocks * layout.block_stride) << name;
    slots = slots_of(file, group, tokens);
  }
  std::int64_t vectors() const { return tokens * layout.num_kv_heads; }

  Planes gather(const PageLayout& from, const std::vector<std::uint8_t>& pages, Side side) const {
    Planes k_planes(k, vectors()), v_planes(v, vectors());
    read_pages(from, pages.data(), blocks, slots.data(), tokens, k_planes.out(), v_planes.out());
    return side == Side::K ? k_planes : v_planes;
  }

  /// Encode and write; every byte equal but the codes next to a boundary. Scales, norms and zeros are equal to the last bit.
  void check_write() const {
    const Planes k_ours = test::encode(k, k_in), v_ours = test::encode(v, v_in);
    const Planes k_theirs = gather(layout, cache, Side::K), v_theirs = gather(layout, cache, Side::V);
    EXPECT_EQ(k_ours.scale, k_theirs.scale) << name;
    EXPECT_EQ(v_ours.scale, v_theirs.scale) << name;
    EXPECT_EQ(v_ours.zero, v_theirs.zero) << name;
    const bool fp8 = k.spec().kind == CodeKind::Fp8;
    const int k_differing =
        fp8 ? count_interpreter_bytes(k_in, k_ours, k_theirs) : count_boundary_codes(k, k_in, k_ours, k_theirs, name + " k");
    const int differing = k_differing + count_boundary_codes(v, v_in, v_ours, v_theirs, name + " v");
    std::printf("%-32s %d of %zu codes differ, %s\n", name.c_str(), differing, k_in.size() + v_in.size(),
                fp8 ? "by the rounding of Triton's interpreter" : "all within 1e-5 of a boundary");

    std::vector<std::uint8_t> pages(cache.size(), 0);
    write_pages(layout, k_ours.in(), v_ours.in(), slots.data(), tokens, pages.data(), blocks);
    int bytes = 0;
    for (std::size_t i = 0; i < pages.size(); ++i) bytes += pages[i] != cache[i] ? 1 : 0;
    EXPECT_LE(bytes, differing) << name;
    // Their codes through our writer: the whole cache, unused slots included.
    std::vector<std::uint8_t> copied(cache.size(), 0);
    write_pages(layout, k_theirs.in(), v_theirs.in(), slots.data(), tokens, copied.data(), blocks);
    EXPECT_TRUE(copied == cache) << name;
  }

  /// Attention over their pages, [q heads, dim].
  std::vector<double> attention(const File& file, const std::string& group) const {
    const auto q = file.read<float>(group + "/q");
    const auto heads = static_cast<std::size_t>(layout.num_kv_heads), dim = static_cast<std::size_t>(layout.head_dim),
               n = static_cast<std::size_t>(tokens);
    const std::vector<float> keys = head_major(test::decode(k, gather(layout, cache, Side::K), vectors()), n, heads, dim);
    const std::vector<float> values = head_major(test::decode(v, gather(layout, cache, Side::V), vectors()), n, heads, dim);
    std::vector<double> out(q.size());
    reference_attention(q.data.data(), keys.data(), values.data(), 1, tokens, static_cast<int>(q.shape[1]), layout.num_kv_heads,
                        layout.head_dim, {}, out.data(), nullptr);
    return out;
  }
};

class TurboquantVllmGolden : public testing::TestWithParam<int> {};

TEST_P(TurboquantVllmGolden, PagesBothWaysAndAttention) {
  const File file;
  const std::string base = "tqv/d" + std::to_string(GetParam());
  const PageCase pages(file, base + "/page", base + "/b4", LayoutKind::TurboquantVllm, spec_from_name("turboquant-vllm"), GetParam());
  pages.check_write();

  for (const Side side : {Side::K, Side::V}) {
    const std::string which = base + "/b4/" + (side == Side::K ? "k" : "v");
    const Planes planes = pages.gather(pages.layout, pages.cache, side);
    EXPECT_EQ(planes.scale, file.read<float>(which + "_norms").data);
    std::vector<float> rotated(pages.k_in.size());
    pages.k.decode_rotated(planes.in(), pages.vectors(), rotated.data());
    const auto expected = file.read<float>(which + "_dequant_rotated");
    for (std::size_t i = 0; i < rotated.size(); ++i)
      ASSERT_NEAR(rotated[i], expected[i], 1e-3 * std::abs(expected[i]) + 1e-7) << which << " " << i;
    // The same bytes from the packed rows alone, without a page.
    const auto packed = file.read<std::uint8_t>(which + "_packed");
    std::vector<std::uint8_t> nibbles(packed.size() * 2);
    core::unpack_nibbles_high_first(packed.data.data(), nibbles.size(), nibbles.data());
    EXPECT_TRUE(nibbles == codes_of(pages.k, planes.codes)) << which;
  }

  const std::vector<double> out = pages.attention(file, base + "/page");
  const double exact = worst(out, file.read<double>(base + "/page/out_float64").data);
  EXPECT_LT(exact, 1e-5) << "attention in float64";  // the rotation of float32 values is all that differs
  std::printf("%-32s attention: %.1e of float64", pages.name.c_str(), exact);
  if (file.has(base + "/page/out_peer_kernel")) {
    const double kernel = worst(out, file.read<float>(base + "/page/out_peer_kernel").data);
    EXPECT_LT(kernel, 2e-3) << "their kernel rounds the rotated query, the probabilities and the output to float16";
    std::printf(", %.1e of their kernel", kernel);
  }
  std::printf("\n");
}

TEST_P(TurboquantVllmGolden, PaddedRowsHoldTheSameBytes) {
  const File file;
  const std::string base = "tqv/d" + std::to_string(GetParam());
  const PageCase pages(file, base + "/page", base + "/b4", LayoutKind::TurboquantVllm, spec_from_name("turboquant-vllm"), GetParam());
  const PageLayout padded = padded_turboquant_vllm_layout(pages.layout.spec, pages.layout.num_kv_heads, GetParam(), kBlockSize);
  ASSERT_GT(padded.token_stride, pages.layout.token_stride);
  const Planes k = pages.gather(pages.layout, pages.cache, Side::K), v = pages.gather(pages.layout, pages.cache, Side::V);
  std::vector<std::uint8_t> wide(static_cast<std::size_t>(pages.blocks * padded.block_stride), 0x5a);
  write_pages(padded, k.in(), v.in(), pages.slots.data(), pages.tokens, wide.data(), pages.blocks);
  for (const std::int64_t slot : pages.slots) {
    const std::uint8_t* row = wide.data() + slot * padded.token_stride;
    EXPECT_EQ(0,
              std::memcmp(row, pages.cache.data() + slot * pages.layout.token_stride, static_cast<std::size_t>(pages.layout.token_stride)));
    for (std::int64_t b = pages.layout.token_stride; b < padded.token_stride; ++b) ASSERT_EQ(row[b], 0x5a);
  }
  EXPECT_TRUE(pages.gather(padded, wide, Side::K) == k);
  EXPECT_TRUE(pages.gather(padded, wide, Side::V) == v);
}

INSTANTIATE_TEST_SUITE_P(Dims, TurboquantVllmGolden, testing::Values(64, 96, 128, 256), testing::PrintToStringParamName());

struct VllmCase {
  const char *preset, *spec;
  int dim;
};
class VllmGolden : public testing::TestWithParam<VllmCase> {};

TEST_P(VllmGolden, PagesBothWaysAndAttention) {
  const auto& [preset, spec_text, dim] = GetParam();
  const File file;
  const std::string base = std::string("vllm/turboquant_") + preset + "/d" + std::to_string(dim);
  const PageCase pages(file, base, base, LayoutKind::Vllm, spec_from_name(spec_text), dim);
  EXPECT_EQ(pages.layout.head_stride, file.scalar<std::int64_t>(base + "/slot_size"));
  const auto mapping = file.read<std::int32_t>(base + "/slot_mapping");
  EXPECT_EQ(pages.slots, std::vector<std::int64_t>(mapping.data.begin(), mapping.data.end()));
  pages.check_write();

  // Values: index * scale + zero as their kernel reads them back, within rounding of half a step of what went in.
  const Planes v = pages.gather(pages.layout, pages.cache, Side::V);
  const std::vector<float> values = test::decode(pages.v, v, pages.vectors());
  for (std::size_t i = 0; i < values.size(); ++i) {
    const double step = static_cast<double>(v.scale[i / static_cast<std::size_t>(dim)]);
    ASSERT_LE(std::abs(static_cast<double>(values[i] - pages.v_in[i])), 0.51 * step + 0.01) << i;
  }
  const double kernel = worst(pages.attention(file, base), file.read<float>(base + "/out_peer_kernel").data);
  EXPECT_LT(kernel, 1e-3) << "their kernel keeps float32 inside and rounds the output to float16";
  std::printf("%-32s attention: %.1e of their kernel\n", pages.name.c_str(), kernel);
}

std::vector<VllmCase> vllm_cases() {
  std::vector<VllmCase> cases;
  for (const int dim : {64, 128, 256}) {
    for (const auto& [preset, spec] :
         {std::pair{"k8v4", "vllm:k8v4"}, {"4bit_nc", "vllm:4bit_nc"}, {"k3v4_nc", "vllm:k3v4_nc"}, {"3bit_nc", "vllm:3bit_nc"}}) {
      cases.push_back({preset, spec, dim});
    }
  }
  return cases;
}

INSTANTIATE_TEST_SUITE_P(Presets, VllmGolden, testing::ValuesIn(vllm_cases()),
                         [](const auto& p) { return std::string(p.param.preset) + "_d" + std::to_string(p.param.dim); });

}  // namespace
}  // namespace tq4
