// Page caches in a file: what an engine holds in device memory, kept in HDF5 so that layouts can be converted, compared and tested. One group
// a layer (`/layer_000`, or the root itself) with the datasets `cache` (uint8), `block_table` (int32 [num_seqs, blocks]) and `seq_lens`
// (int32 [num_seqs]); files written here also say layout, codec and shapes in attributes (FORMAT.md), others need a PageHint.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "tq4/layout.h"

namespace tq4 {

/// One layer's cache without its bytes.
struct PagedLayer {
  int layer = 0;
  PageLayout layout;
  std::int64_t num_blocks = 0;
  std::vector<std::int32_t> block_table;  ///< [seq_lens.size(), blocks_per_seq]: page of each block of a sequence
  std::int64_t blocks_per_seq = 0;
  std::vector<std::int32_t> seq_lens;  ///< [num_seqs] tokens
};

/// What the cache datasets themselves cannot tell.
struct PageHint {
  LayoutKind kind = LayoutKind::Native;
  CodecSpec spec;
  int num_kv_heads = 0;  ///< Vllm: may be 0, the dataset has them as an axis
  int head_dim = 0;
  bool heads_outer = false;  ///< Vllm: [blocks, heads, block_size, slot] instead of [blocks, block_size, heads, slot]
};

/// Slots (page * block_size + offset) of tokens [begin, begin + count) of one sequence. Throws BadInput when the table is too short or names
/// a page the cache does not have.
std::vector<std::int64_t> slot_mapping(const PagedLayer& layer, std::size_t sequence, std::int64_t begin, std::int64_t count);

class PageFileWriter {
 public:
  virtual ~PageFileWriter() = default;
  /// cache: num_blocks * layout.block_stride bytes. Layers in any order, each once.
  virtual void write(const PagedLayer& layer, const std::uint8_t* cache) = 0;
  virtual void commit() = 0;  ///< fsync, rename. Without it nothing is left behind.
};
/// `attributes` are kept at the root (what the source's dump said about its model).
std::unique_ptr<PageFileWriter> create_page_file(const std::string& path, const std::map<std::string, std::string>& attributes,
                                                 bool overwrite);

class PageFile {
 public:
  virtual ~PageFile() = default;
  virtual const std::map<std::string, std::string>& attributes() const = 0;
  virtual const std::vector<PagedLayer>& layers() const = 0;  ///< ascending by number
  /// The bytes of one layer's cache: num_blocks * layout.block_stride.
  virtual std::vector<std::uint8_t> read(std::size_t layer_index) = 0;
};
/// Throws BadInput when it is no page file or its parts contradict each other; Usage when it does not describe itself and `hint` is empty.
std::unique_ptr<PageFile> open_page_file(const std::string& path, const std::optional<PageHint>& hint = {});
/// Whether an HDF5 file holds page caches (a dataset named `cache` in the root or in a layer_NNN group). False for anything unreadable.
bool is_page_file(const std::string& path);

}  // namespace tq4
