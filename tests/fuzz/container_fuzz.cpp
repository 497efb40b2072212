// Containers. Nearly every mutation dies at the checksums, so they are made right first: then the metadata, the shapes and the tables meet what
// a malicious writer could send. The bytes as they came are tried too.
#include <algorithm>
#include <cstring>
#include <vector>

#include "fuzz.h"
#include "io/checksum.h"
#include "io/sealed_file.h"
#include "tq4/container.h"

namespace {

/// Puts correct checksums into a file that is otherwise well-formed; leaves others alone.
void reseal(std::string& file) {
  using namespace tq4::io;
  std::uint64_t length = 0;
  if (file.size() < 10) return;
  std::memcpy(&length, file.data(), 8);
  if (length > file.size() - 8) return;
  std::uint64_t payload = 0, blocks = 0;
  try {
    const SafetensorsHeader header = parse_safetensors_header(std::string_view(file).substr(8, length), file.size(), "fuzz");
    const SafetensorsEntry* sums = header.find("checksums");
    if (sums == nullptr || sums->begin != 0) return;
    blocks = sums->end / 8;
    payload = header.data_start + sums->end;
  } catch (const tq4::Error&) {
    return;
  }
  std::vector<std::uint64_t> checksums(blocks);
  for (std::uint64_t b = 0; b < blocks && payload + b * kBlockBytes < file.size(); ++b) {
    checksums[b] =
        xxh3(file.data() + payload + b * kBlockBytes, std::min<std::size_t>(kBlockBytes, file.size() - payload - b * kBlockBytes));
  }
  std::memcpy(file.data() + 8 + length, checksums.data(), blocks * 8);
  const std::string header = file.substr(0, 8 + length);
  const std::size_t digits = find_seal(header);
  if (digits != std::string::npos) file.replace(digits, 16, hex16(seal(header, digits, checksums)));
}

void open_and_use(const std::string& bytes) {
  const tq4::fuzz::MemoryFile file(bytes.data(), bytes.size());
  tq4::fuzz::expect_answer_or_refusal([&] {
    const auto container = tq4::open_container(file.path());
    container->verify();
    for (std::size_t i = 0; i < container->info().layers.size(); ++i) {
      const tq4::LayerInfo& shape = container->info().layers[i].shape;
      const std::int64_t count = std::min<std::int64_t>(shape.tokens, 40);
      std::vector<float> x(static_cast<std::size_t>(count) * static_cast<std::size_t>(shape.head_dim));
      for (const tq4::Side side : {tq4::Side::K, tq4::Side::V}) {
        container->decode(i, side, shape.num_kv_heads - 1, shape.tokens - count, count, x.data());
      }
    }
  });
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  std::string bytes(reinterpret_cast<const char*>(data), size);
  open_and_use(bytes);
  reseal(bytes);
  open_and_use(bytes);
  return 0;
}
