// Reading sealed files: the header is verified on opening, every other byte when its block is first needed. A few verified blocks are kept,
// so that reading a head's codes and scales in turn does not read them again and again.
#include <algorithm>
#include <cstring>
#include <string_view>

#include "io/checksum.h"
#include "io/sealed_file.h"

namespace tq4::io {
namespace {

constexpr std::size_t kBlocksKept = 16;

std::string shape_text(const std::vector<std::uint64_t>& shape) {
  std::string text = "[";
  for (std::size_t i = 0; i < shape.size(); ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
  return text + "]";
}

/// By the first bytes: a file of another format is called that, not a damaged one of this.
void refuse_other_formats(std::string_view start, const std::string& path, const std::string& what, const std::string& mend) {
  const char* other = start.starts_with("\x89HDF\r\n\x1a\n")                               ? "an HDF5 file"
                      : start.starts_with("\x93NUMPY")                                     ? "an npy file"
                      : start.starts_with("PK\x03\x04") || start.starts_with("PK\x05\x06") ? "an npz (zip) file"
                                                                                           : nullptr;
  if (other != nullptr) bad_input(path, "is " + std::string(other) + ", not " + what + "; " + mend);
  if (start[8] != '{') bad_input(path, "not " + what + " (by its first bytes)");
}

void check_version(const SafetensorsHeader& header, const std::string& path, const std::string& format) {
  const auto kind = header.metadata.find("format"), version = header.metadata.find("format_version");
  const std::string what = format == "tq4" ? "a tq4 container" : "a tq4 calibration";
  if (kind == header.metadata.end() || kind->second != format) bad_input(path, "a safetensors file, but not " + what);
  if (version == header.metadata.end() || version->second.empty() || version->second.size() > 6 ||
      version->second.find_first_not_of("0123456789") != std::string::npos) {
    bad_input(path, "has no readable format_version; the header is damaged");
  }
  if (std::stoi(version->second) > kFormatVersion) {
    bad_input(path, "has format version " + version->second + ", this program reads up to " + std::to_string(kFormatVersion) +
                        "; use a newer tq4");
  }
  if (std::stoi(version->second) < 1) bad_input(path, "has format version 0; the header is damaged");
}

}  // namespace

SealedFile::SealedFile(const std::string& path, const std::string& format) : file_(path) {
  const std::string what = format == "tq4" ? "a tq4 container" : "a tq4 calibration";
  if (file_.size() < 10) bad_input(path, "not " + what + ": only " + std::to_string(file_.size()) + " bytes");
  std::string text(10, '\0');
  file_.read_at(0, text.data(), text.size());
  refuse_other_formats(text, path, what,
                       format == "tq4" ? "tq4 compress makes one of a dump, tq4 convert of pages" : "tq4 calibrate makes one of dumps");
  text.resize(8);
  std::uint8_t prefix[8];
  std::memcpy(prefix, text.data(), 8);
  const std::uint64_t length = safetensors_json_length(prefix, file_.size(), path);
  text.resize(8 + static_cast<std::size_t>(length));
  file_.read_at(8, text.data() + 8, static_cast<std::size_t>(length));
  if (length < 2 || text[8] != '{') bad_input(path, "not " + what);
  header_ = parse_safetensors_header(std::string_view(text).substr(8), file_.size(), path);
  check_version(header_, path, format);
  for (std::size_t i = 0; i < header_.entries.size(); ++i) index_[header_.entries[i].name] = i;

  const std::uint64_t data_bytes = file_.size() - header_.data_start;
  const SafetensorsEntry& sums = entry("checksums");
  const std::uint64_t blocks = sums.shape.size() == 1 ? sums.shape[0] : 0;
  if (sums.dtype != "U64" || sums.shape.size() != 1 || sums.begin != 0 || metadata("block_bytes") != std::to_string(kBlockBytes) ||
      blocks != (data_bytes - sums.end + kBlockBytes - 1) / kBlockBytes) {
    bad_input(path, "its table of checksums does not fit the file; the header is damaged");
  }
  expected_.insert("checksums");
  checksums_.resize(static_cast<std::size_t>(blocks));
  file_.read_at(header_.data_start, checksums_.data(), checksums_.size() * sizeof(std::uint64_t));
  payload_start_ = header_.data_start + sums.end;
  const std::size_t digits = find_seal(text);
  if (digits == std::string::npos || text.substr(digits, 16) != hex16(seal(text, digits, checksums_))) {
    bad_input(path, "the checksum of the header is wrong; the file is damaged, copy it again");
  }
}

const std::string& SealedFile::metadata(const std::string& key) const {
  const auto found = header_.metadata.find(key);
  if (found == header_.metadata.end()) bad_input(path(), "the header has no \"" + key + "\"");
  return found->second;
}

const SafetensorsEntry& SealedFile::entry(const std::string& name) const {
  const auto found = index_.find(name);
  if (found == index_.end()) bad_input(path(), "the tensor " + name + " is missing");
  return header_.entries[found->second];
}

const SafetensorsEntry& SealedFile::expect(const std::string& name, DType dtype, const std::vector<std::uint64_t>& shape) {
  const SafetensorsEntry& found = entry(name);
  if (found.dtype != safetensors_dtype(dtype) || found.shape != shape) {
    bad_input(path() + ": " + name, "is " + found.dtype + " " + shape_text(found.shape) + " instead of " +
                                        std::string(safetensors_dtype(dtype)) + " " + shape_text(shape));
  }
  expected_.insert(name);
  return found;
}

void SealedFile::refuse_others() const {
  for (const SafetensorsEntry& found : header_.entries) {
    if (!expected_.contains(found.name)) bad_input(path(), "holds the unexpected tensor " + found.name.substr(0, 200));
  }
}

SealedFile::Block SealedFile::block(std::uint64_t index, const std::string& reader) {
  const std::lock_guard lock(mutex_);
  const auto kept = std::find_if(recent_.begin(), recent_.end(), [&](const auto& one) { return one.first == index; });
  if (kept != recent_.end()) {
    recent_.splice(recent_.begin(), recent_, kept);
    return recent_.front().second;
  }
  const std::uint64_t begin = payload_start_ + index * kBlockBytes, end = std::min(file_.size(), begin + kBlockBytes);
  auto bytes = std::make_shared<std::vector<std::uint8_t>>(static_cast<std::size_t>(end - begin));
  file_.read_at(begin, bytes->data(), bytes->size());
  if (xxh3(bytes->data(), bytes->size()) != checksums_[index]) {
    bad_input(path() + ": " + reader, "the checksum of block " + std::to_string(index) + " (bytes " + std::to_string(begin) + " to " +
                                          std::to_string(end) + " of the file) is wrong; the file is damaged, copy it again");
  }
  recent_.emplace_front(index, std::move(bytes));
  if (recent_.size() > kBlocksKept) recent_.pop_back();
  return recent_.front().second;
}

void SealedFile::read(const SafetensorsEntry& found, std::uint64_t offset, void* out, std::uint64_t bytes) {
  if (offset > found.end - found.begin || bytes > found.end - found.begin - offset)
    throw Error(ErrorCode::Usage, "read past the end of " + found.name, path());
  auto* to = static_cast<std::uint8_t*>(out);
  for (std::uint64_t at = header_.data_start + found.begin + offset - payload_start_, end = at + bytes; at < end;) {
    const std::uint64_t index = at / kBlockBytes, here = std::min(end, (index + 1) * kBlockBytes) - at;
    const Block source = block(index, found.name);
    std::memcpy(to, source->data() + (at - index * kBlockBytes), static_cast<std::size_t>(here));
    to += here;
    at += here;
  }
}

void SealedFile::verify() {
  std::size_t owner = 0;  // the first tensor that reaches into the block
  for (std::uint64_t b = 0; b < checksums_.size(); ++b) {
    const std::uint64_t at = payload_start_ - header_.data_start + b * kBlockBytes;
    while (owner + 1 < header_.entries.size() && header_.entries[owner].end <= at) ++owner;
    block(b, header_.entries[owner].name);
  }
}

}  // namespace tq4::io
