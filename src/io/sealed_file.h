// A sealed file: a safetensors file whose every byte is under a checksum, written in any order, read and verified a piece at a time.
// Containers and calibration files are sealed files. The tensor `checksums` comes first and holds XXH3-64 of each 1 MiB block of the bytes
// after it; the metadata entry `xxh3` holds XXH3-64 of the header (its own 16 digits as zeros) and that tensor.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <list>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "io/file.h"
#include "io/safetensors_file.h"
#include "tq4/container.h"

namespace tq4::io {

inline constexpr std::uint64_t kBlockBytes = std::uint64_t{1} << 20;
inline constexpr int kFormatVersion = 1;

/// A tensor to be written; its place in the file is the writer's business.
struct PlannedTensor {
  std::string name;
  DType dtype;
  std::vector<std::uint64_t> shape;
  std::uint64_t bytes() const;
};

class RunningHash;

class SealedWriter {
 public:
  /// `format` is the metadata entry of that name; `metadata` everything else but checksums and version. Tensors without elements are left
  /// out of the file. Fails here, not later, when the disk has no room.
  SealedWriter(const std::string& path, bool overwrite, const std::string& format, std::map<std::string, std::string> metadata,
               std::vector<PlannedTensor> tensors);
  ~SealedWriter();
  /// Bytes of tensor `index` (into the constructor's list) from `offset`. Any order, each byte once; several threads may write at once.
  void write(std::size_t index, std::uint64_t offset, const void* data, std::uint64_t bytes);
  /// Checks that every byte was written, writes checksums and header, syncs and renames.
  void commit();

 private:
  void hash(std::uint64_t block, std::uint64_t begin, const void* data, std::uint64_t bytes);
  void finish_block(std::uint64_t block);
  std::uint64_t block_bytes(std::uint64_t block) const { return std::min(kBlockBytes, payload_bytes_ - block * kBlockBytes); }

  AtomicFile file_;
  std::string path_;
  std::map<std::string, std::string> metadata_;
  std::vector<PlannedTensor> tensors_;
  std::vector<SafetensorsEntry> entries_;  ///< by offset, `checksums` first
  std::vector<std::uint64_t> offsets_;     ///< file offset of each of tensors_
  std::uint64_t payload_start_ = 0, payload_bytes_ = 0;
  std::unique_ptr<std::atomic<std::uint64_t>[]> missing_;  ///< bytes of each block not written yet
  std::vector<std::uint64_t> checksums_;
  std::mutex mutex_;
  std::map<std::uint64_t, std::unique_ptr<RunningHash>> hashes_;  ///< blocks whose bytes come in order so far; under mutex_
};

class SealedFile {
 public:
  /// Opens, verifies header and `checksums`. BadInput: another format, a newer version, cut short, damaged.
  SealedFile(const std::string& path, const std::string& format);

  const std::string& path() const { return file_.path(); }
  std::uint64_t size() const { return file_.size(); }
  const std::string& metadata(const std::string& key) const;  ///< BadInput when missing
  bool has_metadata(const std::string& key) const { return header_.metadata.contains(key); }
  bool has(const std::string& name) const { return index_.contains(name); }
  const SafetensorsEntry& entry(const std::string& name) const;  ///< BadInput when missing

  /// The entry after checking type and shape; marks it as expected. BadInput on a mismatch.
  const SafetensorsEntry& expect(const std::string& name, DType dtype, const std::vector<std::uint64_t>& shape);
  /// BadInput when the file holds a tensor nobody expected.
  void refuse_others() const;

  /// Verified bytes of a tensor. Safe to call from several threads.
  void read(const SafetensorsEntry& entry, std::uint64_t offset, void* out, std::uint64_t bytes);
  /// A whole tensor of type T after expect(). `dtype` must be T's.
  template <class T>
  std::vector<T> read_vector(const std::string& name, DType dtype, const std::vector<std::uint64_t>& shape) {
    const SafetensorsEntry& found = expect(name, dtype, shape);
    std::vector<T> values(static_cast<std::size_t>(found.elements()));
    read(found, 0, values.data(), values.size() * sizeof(T));
    return values;
  }
  /// Reads every block; BadInput names the first bad one and the tensor it belongs to.
  void verify();

 private:
  using Block = std::shared_ptr<const std::vector<std::uint8_t>>;
  Block block(std::uint64_t index, const std::string& reader);

  InputFile file_;
  SafetensorsHeader header_;
  std::map<std::string, std::size_t> index_;
  std::set<std::string> expected_;
  std::uint64_t payload_start_ = 0;
  std::vector<std::uint64_t> checksums_;
  std::mutex mutex_;
  std::list<std::pair<std::uint64_t, Block>> recent_;  ///< verified blocks, latest first
};

/// XXH3-64 (seed 0).
std::uint64_t xxh3(const void* data, std::size_t bytes);
/// 16 lower-case hexadecimal digits and back; BadInput.
std::string hex16(std::uint64_t value);
std::uint64_t parse_hex16(const std::string& text, const std::string& where);

}  // namespace tq4::io
