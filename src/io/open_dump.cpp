// open_dump: which reader a file gets is decided by its first bytes, never by its name.
#include "io/open_dump.h"

#include <algorithm>
#include <array>
#include <string_view>

#include "io/file.h"

namespace tq4 {

std::unique_ptr<Dump> open_dump(const std::string& path, const DumpOptions& options) {
  std::array<char, 10> head{};
  {
    const io::InputFile file(path);
    if (file.size() == 0) io::bad_input(path, "the file is empty");
    file.read_at(0, head.data(), static_cast<std::size_t>(std::min<std::uint64_t>(file.size(), head.size())));
    // HDF5 may begin after a user block of 512, 1024, ... bytes.
    constexpr std::string_view signature("\x89HDF\r\n\x1a\n", 8);
    std::array<char, 8> at{};
    for (std::uint64_t offset = 0; offset + 8 <= file.size(); offset = offset == 0 ? 512 : offset * 2) {
      file.read_at(offset, at.data(), at.size());
      if (std::string_view(at.data(), at.size()) == signature) return io::open_hdf5_dump(path, options);
    }
  }
  const std::string_view start(head.data(), head.size());
  if (start.starts_with("\x93NUMPY") || start.starts_with("PK\x03\x04") || start.starts_with("PK\x05\x06"))
    return io::open_npy_dump(path, options);
  if (start[8] == '{') return io::open_safetensors_dump(path, options);
  io::bad_input(path, "not an HDF5, safetensors, npy or npz file (by its first bytes)");
}

}  // namespace tq4
