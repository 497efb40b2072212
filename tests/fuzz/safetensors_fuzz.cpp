// Safetensors dumps: the header's parser, names, shapes and axes, and the reads that follow from them.
#include "dump_fuzz.h"
#include "io/open_dump.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  tq4::fuzz::open_and_read([](const std::string& path) { return tq4::io::open_safetensors_dump(path, {}); }, data, size);
  return 0;
}
