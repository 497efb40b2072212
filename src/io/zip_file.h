// Reads members of a zip archive (npz): stored ones by position in the file, deflated ones as a stream that rewinds when asked to go back.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace tq4::io {

struct ZipMember {
  std::string name;
  std::uint64_t size = 0;  ///< uncompressed
  bool stored = false;
  std::uint64_t data_offset = 0;                   ///< stored members: where their bytes begin in the archive
  std::uint64_t directory_offset = 0, number = 0;  ///< minizip's position of the member
};

/// The members of the archive; BadInput when it is damaged, encrypted or uses a method other than stored and deflate.
std::vector<ZipMember> list_zip(const std::string& path);

/// The bytes of one deflated member, in ascending order (going back starts over). Memory: 64 KiB. BadInput on damaged data or CRC.
class ZipStream {
 public:
  ZipStream(const std::string& path, const ZipMember& member);
  ~ZipStream();
  ZipStream(const ZipStream&) = delete;
  ZipStream& operator=(const ZipStream&) = delete;
  const std::string& member() const { return member_.name; }
  void read_at(std::uint64_t offset, void* out, std::size_t bytes);

 private:
  void rewind();
  void next(void* out, std::size_t bytes);

  std::string path_;
  ZipMember member_;
  void* archive_ = nullptr;
  std::uint64_t position_ = 0;
};

}  // namespace tq4::io
