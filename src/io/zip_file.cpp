// See zip_file.h. The archive format itself is minizip's work (from zlib's own source tree).
#include "io/zip_file.h"

#include <minizip/unzip.h>

#include <algorithm>
#include <array>

#include "io/file.h"

namespace tq4::io {
namespace {

struct Archive {
  explicit Archive(const std::string& path) : handle(unzOpen64(path.c_str())) {
    if (handle == nullptr) bad_input(path, "the zip directory cannot be read; the file is cut short or damaged, copy it again");
  }
  ~Archive() { unzClose(handle); }
  Archive(const Archive&) = delete;
  Archive& operator=(const Archive&) = delete;
  unzFile handle;
};

}  // namespace

std::vector<ZipMember> list_zip(const std::string& path) {
  const Archive archive(path);
  std::vector<ZipMember> members;
  for (int status = unzGoToFirstFile(archive.handle); status != UNZ_END_OF_LIST_OF_FILE; status = unzGoToNextFile(archive.handle)) {
    if (status != UNZ_OK) bad_input(path, "the zip directory is damaged");
    unz_file_info64 info{};
    std::array<char, 1024> name{};
    if (unzGetCurrentFileInfo64(archive.handle, &info, name.data(), name.size() - 1, nullptr, 0, nullptr, 0) != UNZ_OK)
      bad_input(path, "the zip directory is damaged");
    ZipMember& member = members.emplace_back();
    member.name = name.data();
    member.size = info.uncompressed_size;
    member.stored = info.compression_method == 0;
    const std::string where = path + ": " + member.name;
    if ((info.flag & 1u) != 0) bad_input(where, "is encrypted");
    if (!member.stored && info.compression_method != Z_DEFLATED)
      bad_input(where, "uses zip method " + std::to_string(info.compression_method) + "; save with numpy.savez or savez_compressed");
    unz64_file_pos position{};
    if (unzGetFilePos64(archive.handle, &position) != UNZ_OK) bad_input(where, "cannot be found in the zip directory");
    member.directory_offset = position.pos_in_zip_directory;
    member.number = position.num_of_file;
    if (member.stored) {
      if (unzOpenCurrentFile(archive.handle) != UNZ_OK) bad_input(where, "its local zip header is damaged");
      member.data_offset = unzGetCurrentFileZStreamPos64(archive.handle);
      unzCloseCurrentFile(archive.handle);
    }
  }
  return members;
}

ZipStream::ZipStream(const std::string& path, const ZipMember& member) : path_(path), member_(member) {
  archive_ = unzOpen64(path.c_str());
  if (archive_ == nullptr) bad_input(path, "the zip directory cannot be read");
  try {
    rewind();
  } catch (...) {
    unzClose(archive_);
    throw;
  }
}

ZipStream::~ZipStream() {
  unzCloseCurrentFile(archive_);
  unzClose(archive_);
}

void ZipStream::rewind() {
  unzCloseCurrentFile(archive_);
  unz64_file_pos position{member_.directory_offset, member_.number};
  if (unzGoToFilePos64(archive_, &position) != UNZ_OK || unzOpenCurrentFile(archive_) != UNZ_OK)
    bad_input(path_ + ": " + member_.name, "its local zip header is damaged");
  position_ = 0;
}

void ZipStream::next(void* out, std::size_t bytes) {
  auto* to = static_cast<std::uint8_t*>(out);
  while (bytes > 0) {
    const int got = unzReadCurrentFile(archive_, to, static_cast<unsigned>(std::min<std::size_t>(bytes, std::size_t{1} << 24)));
    if (got <= 0) bad_input(path_ + ": " + member_.name, "its compressed data end early or are damaged; copy the file again");
    to += got;
    bytes -= static_cast<std::size_t>(got);
    position_ += static_cast<std::uint64_t>(got);
  }
  if (position_ == member_.size) {  // minizip compares the CRC when a member read to its end is closed
    if (unzCloseCurrentFile(archive_) == UNZ_CRCERROR)
      bad_input(path_ + ": " + member_.name, "its CRC is wrong; the file is damaged, copy it again");
  }
}

void ZipStream::read_at(std::uint64_t offset, void* out, std::size_t bytes) {
  if (offset > member_.size || bytes > member_.size - offset) bad_input(path_ + ": " + member_.name, "is shorter than its header says");
  if (bytes == 0) return;
  if (offset < position_ || position_ == member_.size) rewind();
  std::array<std::uint8_t, 65536> skipped;
  while (position_ < offset) next(skipped.data(), static_cast<std::size_t>(std::min<std::uint64_t>(skipped.size(), offset - position_)));
  next(out, bytes);
}

}  // namespace tq4::io
