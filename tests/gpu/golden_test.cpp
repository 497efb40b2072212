// The peers' own pages through our kernels: store writes their bytes, decode on their cache gives their attention (within what their fp16
// kernels round away), dequant gives their dequantised vectors.
#include <cstdlib>

#include "golden/golden_file.h"
#include "gpu/gpu_test.h"
#include "tq4/attention.h"
#include "tq4/layout.h"

namespace tq4::gpu {
namespace {

/// The file's place can be given where the binary runs on another machine than the one it was built on.
std::string golden_path() {
  const char* path = std::getenv("TQ4_GOLDEN");
  return path ? path : std::string(TQ4_SOURCE_DIR) + "/tests/golden/data/peers.h5";
}

std::vector<std::uint8_t> as_half(const std::vector<float>& values) {
  std::vector<std::uint8_t> bytes(values.size() * 2);
  from_float(values.data(), values.size(), DType::F16, bytes.data());
  return bytes;
}

double relative_error(const std::vector<float>& got, const std::vector<double>& want) {
  double error = 0, length = 0;
  for (std::size_t i = 0; i < want.size(); ++i) {
    const double d = static_cast<double>(got[i]) - want[i];
    error += d * d;
    length += want[i] * want[i];
  }
  return std::sqrt(error / length);
}

/// Decode with a peer's cache, block table, lengths and queries.
std::vector<float> attend(const DeviceCodec& codec, const PageLayout& layout, const golden::Array<std::uint8_t>& cache,
                          const golden::Array<std::int32_t>& table, const golden::Array<std::int32_t>& lengths,
                          const golden::Array<float>& q) {
  const Device<std::uint8_t> pages(cache.data), device_q(as_half(q.data)), out(q.size() * 2);
  const Device<std::int32_t> device_table(table.data), device_lengths(lengths.data);
  DecodeParams p;
  p.q = device_q.get();
  p.out = out.get();
  p.num_seqs = static_cast<int>(lengths.size());
  p.num_q_heads = static_cast<int>(q.shape.at(1));
  p.cache = {layout, pages.get(), static_cast<std::int64_t>(cache.shape.at(0))};
  p.block_table = device_table.get();
  p.block_table_stride = static_cast<std::int64_t>(table.shape.at(1));
  p.seq_lens = device_lengths.get();
  p.max_seq_len = *std::max_element(lengths.data.begin(), lengths.data.end());
  p.workspace_bytes = decode_workspace_bytes(codec, p);
  const Device<std::uint8_t> workspace(std::vector<std::uint8_t>(p.workspace_bytes));
  p.workspace = workspace.get();
  decode(codec, p, nullptr);
  const std::vector<std::uint8_t> raw = out.host();
  std::vector<float> values(q.size());
  to_float(raw.data(), DType::F16, values.size(), values.data());
  return values;
}

TEST(Golden, TurboquantVllmPages) {
  TQ4_REQUIRE_DEVICE();
  const golden::File file(golden_path());
  for (const int dim : {64, 96, 128, 256}) {
    SCOPED_TRACE(dim);
    const std::string group = "tqv/d" + std::to_string(dim) + "/";
    const auto cache = file.read<std::uint8_t>(group + "page/cache");
    const auto table = file.read<std::int32_t>(group + "page/block_table");
    const auto lengths = file.read<std::int32_t>(group + "page/seq_lens");
    const auto q = file.read<float>(group + "page/q");
    const auto want = file.read<double>(group + "page/out_float64");
    const auto k = file.read<float>(group + "b4/k");
    const int heads = static_cast<int>(k.shape.at(1));
    const CodecSpec spec = spec_from_name("turboquant-vllm");
    const DeviceCodec codec(spec, dim, heads);
    const PageLayout layout = make_layout(LayoutKind::TurboquantVllm, spec, heads, dim, 16);
    ASSERT_EQ(static_cast<std::int64_t>(cache.shape.at(1) * cache.shape.at(2)), layout.block_stride);
    const std::vector<float> got = attend(codec, layout, cache, table, lengths, q);
    EXPECT_LT(relative_error(got, want.data), 2e-3);

    // Planes: encode gives the packed indices (their high nibble is the even dimension), dequant their rotated vectors.
    const auto packed = file.read<std::uint8_t>(group + "b4/k_packed");
    const auto norms = file.read<float>(group + "b4/k_norms");
    const auto rotated = file.read<float>(group + "b4/k_dequant_rotated");
    const std::size_t rows = norms.size();
    const Device<std::uint8_t> codes(packed.data), x(as_half(k.data)), our_codes(packed.size());
    const Device<float> scale(norms.data), our_scale(rows);
    const Device<std::uint8_t> out(rows * static_cast<std::size_t>(dim) * 2);
    DequantParams d;
    d.in = {codes.get(), scale.get(), nullptr, nullptr, nullptr};
    d.n = static_cast<std::int64_t>(rows);
    d.out = out.get();
    d.high_nibble_first = true;
    dequant(codec, Side::K, d, nullptr);
    EXPECT_EQ(out.host(), as_half(rotated.data));
    EncodeParams e;
    e.x = x.get();
    e.n = static_cast<std::int64_t>(rows);
    e.out = {our_codes.get(), our_scale.get(), nullptr, nullptr, nullptr};
    encode(codec, Side::K, e, nullptr);
    const std::vector<std::uint8_t> bytes = our_codes.host();
    std::size_t differing = 0;
    for (std::size_t i = 0; i < bytes.size(); ++i)
      differing += static_cast<std::uint8_t>(bytes[i] << 4 | bytes[i] >> 4) == packed[i] ? 0 : 1;
    EXPECT_LE(differing, bytes.size() / 2000);  // coordinates next to a boundary: their product is summed in another order
    const std::vector<float> our_norms = our_scale.host();
    for (std::size_t i = 0; i < rows; ++i) EXPECT_NEAR(our_norms[i], norms[i], 2e-6 * norms[i]);
  }
}

TEST(Golden, VllmPages) {
  TQ4_REQUIRE_DEVICE();
  const golden::File file(golden_path());
  for (const char* preset : {"k8v4", "4bit_nc", "k3v4_nc", "3bit_nc"}) {
    for (const int dim : {64, 128, 256}) {
      SCOPED_TRACE(std::string(preset) + " d" + std::to_string(dim));
      const std::string group = std::string("vllm/turboquant_") + preset + "/d" + std::to_string(dim) + "/";
      const auto cache = file.read<std::uint8_t>(group + "cache");
      const auto table = file.read<std::int32_t>(group + "block_table");
      const auto lengths = file.read<std::int32_t>(group + "seq_lens");
      const auto mapping = file.read<std::int64_t>(group + "slot_mapping");
      const auto q = file.read<float>(group + "q"), k = file.read<float>(group + "k"), v = file.read<float>(group + "v");
      const auto peer = file.read<double>(group + "out_peer_kernel");
      const int heads = static_cast<int>(k.shape.at(1));
      const CodecSpec spec = spec_from_name(std::string("vllm:") + preset);
      const DeviceCodec codec(spec, dim, heads);
      const PageLayout layout = make_layout(LayoutKind::Vllm, spec, heads, dim, 16);
      ASSERT_EQ(static_cast<std::int64_t>(cache.shape.at(3)), layout.head_stride);
      const std::vector<float> got = attend(codec, layout, cache, table, lengths, q);
      EXPECT_LT(relative_error(got, peer.data), 4e-3);  // their kernel rounds too

      // Store their K and V: their bytes, but for coordinates next to a boundary and the last bit of a norm.
      std::vector<std::uint8_t> start(cache.size(), 0);
      const Device<std::uint8_t> pages(start), dk(as_half(k.data)), dv(as_half(v.data));
      const Device<std::int64_t> slots(mapping.data);
      StoreParams p;
      p.k = dk.get();
      p.v = dv.get();
      p.n = static_cast<std::int64_t>(mapping.size());
      p.slot_mapping = slots.get();
      p.cache = {layout, pages.get(), static_cast<std::int64_t>(cache.shape.at(0))};
      store(codec, p, nullptr);
      const std::vector<std::uint8_t> bytes = pages.host();
      std::size_t differing = 0, compared = 0;
      for (const std::int64_t slot : mapping.data) {
        if (slot < 0) continue;
        for (std::int64_t i = slot * layout.token_stride; i < (slot + 1) * layout.token_stride; ++i) {
          // Triton's interpreter, which wrote the file, rounds fp8 keys wrongly where they carry (1.986 becomes 1.0): leave those out.
          if (spec.k.kind == CodeKind::Fp8 && i % layout.head_stride < dim) continue;
          ++compared;
          differing += bytes[static_cast<std::size_t>(i)] == cache[static_cast<std::size_t>(i)] ? 0 : 1;
        }
      }
      EXPECT_LE(differing, compared / 1000) << differing << " of " << compared;
    }
  }
}

}  // namespace
}  // namespace tq4::gpu
