// Writing sealed files. All sizes are known before the first byte, so tensors are written in place as they come. A block's checksum runs along
// while its bytes come in order; else it is taken when the last has arrived, by reading the block back from the page cache. A whole block
// starts on its way to the disk at once, so that commit() finds little left to wait for. The header goes out last, over space kept for it.
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>

#include "io/checksum.h"
#include "io/sealed_file.h"

namespace tq4::io {

static_assert(std::endian::native == std::endian::little, "tensors are written as they lie in memory");

std::uint64_t PlannedTensor::bytes() const {
  std::uint64_t total = dtype_size(dtype);
  for (const std::uint64_t extent : shape) total *= extent;
  return total;
}

SealedWriter::SealedWriter(const std::string& path, bool overwrite, const std::string& format, std::map<std::string, std::string> metadata,
                           std::vector<PlannedTensor> tensors)
    : file_(path, overwrite), path_(path), metadata_(std::move(metadata)), tensors_(std::move(tensors)), offsets_(tensors_.size()) {
  metadata_["format"] = format;
  metadata_["format_version"] = std::to_string(kFormatVersion);
  metadata_["block_bytes"] = std::to_string(kBlockBytes);
  metadata_["xxh3"] = std::string(16, '0');
  // Wide elements first: every tensor is then aligned to its element without padding.
  std::vector<std::size_t> order(tensors_.size());
  for (std::size_t i = 0; i < order.size(); ++i) order[i] = i;
  std::stable_sort(order.begin(), order.end(),
                   [&](std::size_t a, std::size_t b) { return dtype_size(tensors_[a].dtype) > dtype_size(tensors_[b].dtype); });
  for (const PlannedTensor& tensor : tensors_) payload_bytes_ += tensor.bytes();
  const std::uint64_t blocks = (payload_bytes_ + kBlockBytes - 1) / kBlockBytes;
  checksums_.resize(blocks);
  entries_.push_back({"checksums", "U64", {blocks}, 0, blocks * 8});
  for (const std::size_t i : order) {
    const std::uint64_t begin = entries_.back().end, bytes = tensors_[i].bytes();
    offsets_[i] = begin;
    if (bytes > 0)
      entries_.push_back({tensors_[i].name, std::string(safetensors_dtype(tensors_[i].dtype)), tensors_[i].shape, begin, begin + bytes});
  }
  const std::uint64_t data_start = render_safetensors_header(metadata_, entries_).size();
  if (data_start - 8 > kMaxSafetensorsHeader)
    throw Error(ErrorCode::Unsupported, "the header would take " + std::to_string(data_start) + " bytes, more than the format allows",
                path);
  for (std::uint64_t& offset : offsets_) offset += data_start;
  payload_start_ = data_start + blocks * 8;
  missing_ = std::make_unique<std::atomic<std::uint64_t>[]>(blocks);
  for (std::uint64_t b = 0; b < blocks; ++b) missing_[b] = block_bytes(b);
  reserve_space(file_.fd(), payload_start_ + payload_bytes_, path);
}

SealedWriter::~SealedWriter() = default;

void SealedWriter::write(std::size_t index, std::uint64_t offset, const void* data, std::uint64_t bytes) {
  const std::uint64_t total = tensors_[index].bytes();
  if (offset > total || bytes > total - offset) throw Error(ErrorCode::Usage, "written past the end of " + tensors_[index].name, path_);
  if (bytes == 0) return;
  file_.write_at(offsets_[index] + offset, data, static_cast<std::size_t>(bytes));
  const auto* from = static_cast<const std::uint8_t*>(data);
  for (std::uint64_t at = offsets_[index] + offset - payload_start_, end = at + bytes; at < end;) {
    const std::uint64_t block = at / kBlockBytes, here = std::min(end, (block + 1) * kBlockBytes) - at;
    hash(block, at % kBlockBytes, from, here);
    const std::uint64_t before = missing_[block].fetch_sub(here);
    if (before < here) throw Error(ErrorCode::Usage, "a part of " + tensors_[index].name + " was written twice", path_);
    if (before == here) finish_block(block);
    at += here;
    from += here;
  }
}

/// Goes on with a block's checksum if these bytes follow what it has seen. While one thread does, the hash is its own: another thread finds
/// none, and what it brings is missing in the end.
void SealedWriter::hash(std::uint64_t block, std::uint64_t begin, const void* data, std::uint64_t bytes) {
  std::unique_ptr<RunningHash> running;
  if (begin == 0) {
    running = std::make_unique<RunningHash>();
  } else {
    const std::lock_guard lock(mutex_);
    const auto found = hashes_.find(block);
    if (found == hashes_.end() || found->second->bytes() != begin) return;
    running = std::move(found->second);
    hashes_.erase(found);
  }
  running->update(data, static_cast<std::size_t>(bytes));
  const std::lock_guard lock(mutex_);
  hashes_.insert_or_assign(block, std::move(running));
}

void SealedWriter::finish_block(std::uint64_t block) {
  const std::uint64_t at = payload_start_ + block * kBlockBytes;
  file_.start_writing_back(at, block_bytes(block));
  {
    const std::lock_guard lock(mutex_);
    const auto found = hashes_.find(block);
    if (found != hashes_.end()) {
      const std::unique_ptr<RunningHash> running = std::move(found->second);
      hashes_.erase(found);
      if (running->bytes() == block_bytes(block)) {
        checksums_[block] = running->digest();
        return;
      }
    }
  }
  std::vector<std::uint8_t> bytes(static_cast<std::size_t>(block_bytes(block)));
  for (std::size_t done = 0; done < bytes.size();) {
    const ssize_t got = ::pread(file_.fd(), bytes.data() + done, bytes.size() - done, static_cast<off_t>(at + done));
    if (got <= 0 && errno != EINTR)
      throw Error(ErrorCode::Runtime, std::string("cannot read back what was written: ") + std::strerror(errno), path_);
    if (got > 0) done += static_cast<std::size_t>(got);
  }
  checksums_[block] = xxh3(bytes.data(), bytes.size());
}

void SealedWriter::commit() {
  for (std::uint64_t b = 0; b < checksums_.size(); ++b) {
    if (missing_[b] == 0) continue;
    const std::uint64_t at = payload_start_ + b * kBlockBytes;
    for (std::size_t i = 0; i < tensors_.size(); ++i) {
      if (offsets_[i] + tensors_[i].bytes() > at)
        throw Error(ErrorCode::Usage, "commit() before every part was written, first near " + tensors_[i].name, path_);
    }
  }
  std::string header = render_safetensors_header(metadata_, entries_);
  const std::size_t digits = find_seal(header);
  header.replace(digits, 16, hex16(seal(header, digits, checksums_)));
  file_.write_at(0, header.data(), header.size());
  file_.write_at(header.size(), checksums_.data(), checksums_.size() * sizeof(std::uint64_t));
  file_.commit();
}

}  // namespace tq4::io
