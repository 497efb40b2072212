// The compressed container `.tq4`: a valid safetensors file with self-describing metadata and XXH3 block checksums. FORMAT.md says it byte
// for byte. Writing streams (sizes are known from spec and shapes); reading verifies what it touches and never trusts a number in the file.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "tq4/calibration.h"
#include "tq4/codec.h"
#include "tq4/dump.h"

namespace tq4 {

/// One layer as stored. A layer kept in fp16 has passthrough = true and says why.
struct StoredLayer {
  LayerInfo shape;  ///< q fields are 0: containers hold no queries
  bool passthrough = false;
  std::string reason;                      ///< "--skip-layers", "layer too short for window", ...
  std::int64_t exact_first = 0;            ///< tokens kept in fp16 at the start ("sinks") ...
  std::int64_t exact_last = 0;             ///< ... and at the end ("window")
  std::uint64_t k_bytes = 0, v_bytes = 0;  ///< bytes of every tensor of the side, exact tokens and scales included
};

struct ContainerInfo {
  int format_version = 1;
  CodecSpec spec;
  std::string producer;  ///< "tq4 0.1.0 (commit)"
  DumpInfo dump;         ///< attributes of the source; `layers` is empty, see below
  std::vector<StoredLayer> layers;
  bool calibrated = false;
  std::uint64_t file_bytes = 0;
  std::uint64_t original_bytes = 0;  ///< K and V in the dump's dtype
};

/// Plan and write a container. Usage: construct with everything that fixes sizes, then write each part once, then commit().
/// Several threads may write different parts at once. Without elements on a side (no tokens) there is nothing to write.
class ContainerWriter {
 public:
  virtual ~ContainerWriter() = default;
  /// Encoded planes of vectors [token_begin, token_begin + count) of one head; tokens are counted without the exact ones.
  virtual void write(std::size_t layer_index, Side side, int head, std::int64_t token_begin, std::int64_t count,
                     const EncodedIn& planes) = 0;
  /// Exact tokens (or a passthrough layer): rows [count, D] in fp16, index counted over the exact tokens only (first, then last).
  virtual void write_exact(std::size_t layer_index, Side side, int head, std::int64_t index, std::int64_t count,
                           const std::uint16_t* rows) = 0;
  virtual void commit() = 0;  ///< checksums, fsync, rename. Without it nothing is left behind.
};
std::unique_ptr<ContainerWriter> create_container(const std::string& path, const CodecSpec& spec, const DumpInfo& source,
                                                  const std::vector<StoredLayer>& layers, const Calibration* calibration, bool overwrite);

/// Reading may be done from several threads at once.
class Container {
 public:
  virtual ~Container() = default;
  virtual const ContainerInfo& info() const = 0;
  /// The codec of a side of a layer with the tables stored in the file (never derived again).
  virtual const Codec& codec(std::size_t layer_index, Side side) const = 0;
  virtual const Calibration* calibration() const = 0;  ///< null when none is stored
  /// Read planes of a token range of one head into caller's buffers; verifies the checksums of the blocks it touches.
  virtual void read(std::size_t layer_index, Side side, int head, std::int64_t token_begin, std::int64_t count,
                    const EncodedOut& planes) = 0;
  virtual void read_exact(std::size_t layer_index, Side side, int head, std::int64_t index, std::int64_t count, std::uint16_t* rows) = 0;
  /// Decode tokens [token_begin, +count) of one head to fp32 in original space, exact tokens and passthrough layers included.
  virtual void decode(std::size_t layer_index, Side side, int head, std::int64_t token_begin, std::int64_t count, float* x,
                      const Exec& exec = {}) = 0;
  /// Verify every checksum of the file. Throws BadInput naming the first bad tensor and block.
  virtual void verify() = 0;
};
/// Throws BadInput (not a container, cut short, newer version, checksum of the header).
std::unique_ptr<Container> open_container(const std::string& path);

/// .tq4cal files.
void write_calibration(const std::string& path, const Calibration& calibration, bool overwrite);
Calibration read_calibration(const std::string& path);

/// A file that appears under its name only on commit(): temporary in the same folder, fsync, rename. Removed when dropped, also
/// by remove_all_temporaries(), which a signal handler may call (async-signal-safe).
class AtomicFile {
 public:
  AtomicFile(const std::string& path, bool overwrite);  ///< throws Usage when path exists and overwrite is false; Runtime otherwise
  ~AtomicFile();
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;
  const std::string& temporary_path() const { return temporary_; }
  int fd() const { return fd_; }
  void write(const void* data, std::size_t bytes);  ///< append; throws Runtime (disk full, ...)
  void write_at(std::uint64_t offset, const void* data, std::size_t bytes);
  /// Bytes written for good: the system may begin to put them on the disk, so that commit() has less to wait for. Only a wish.
  void start_writing_back(std::uint64_t offset, std::uint64_t bytes) noexcept;
  void commit();
  static void remove_all_temporaries() noexcept;

 private:
  std::string path_, temporary_;
  int fd_ = -1;
  bool committed_ = false;
  bool overwrite_ = false;
};

}  // namespace tq4
