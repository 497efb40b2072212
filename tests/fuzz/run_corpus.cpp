// Runs a fuzz target over the committed corpus without libFuzzer, and over simple damages of each file (cuts, flipped bytes): a plain
// regression test for every compiler. Usage: PROGRAM FOLDER
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>

#include "fuzz.h"

int main(int argc, char** argv) {
  if (argc != 2) return std::fputs("usage: PROGRAM FOLDER\n", stderr), 2;
  int files = 0;
  const auto run = [](const std::string& bytes) {
    LLVMFuzzerTestOneInput(reinterpret_cast<const std::uint8_t*>(bytes.data()), bytes.size());
  };
  for (const auto& entry : std::filesystem::directory_iterator(argv[1])) {
    std::ifstream in(entry.path(), std::ios::binary);
    const std::string good(std::istreambuf_iterator<char>(in), {});
    run(good);
    for (std::size_t i = 0; i < 48; ++i) {
      const std::size_t at = good.size() * i / 48;
      run(good.substr(0, at));
      std::string bad = good;
      if (!bad.empty()) bad[at] = static_cast<char>(bad[at] ^ (1 << (i % 8)));
      run(bad);
    }
    ++files;
  }
  std::printf("%d files\n", files);
  return files > 0 ? 0 : 1;
}
