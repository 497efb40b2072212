// Dumps: uncompressed K, V and Q of a model, a layer at a time, from HDF5, safetensors, npy/npz. Reading is by ranges, so that memory
// stays bounded whatever the file's size. The schema is in FORMAT.md ("Dump").
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "tq4/types.h"

namespace tq4 {

/// Shape of one layer. k and v are [num_kv_heads, tokens, head_dim]; q is [num_q_heads, q_tokens, head_dim] for the positions
/// q_start .. q_start + q_tokens - 1 (q_tokens = 0: the dump has no queries for this layer).
struct LayerInfo {
  int layer = 0;  ///< the number in its name
  int num_kv_heads = 0;
  int num_q_heads = 0;
  int head_dim = 0;
  std::int64_t tokens = 0;
  std::int64_t q_tokens = 0;
  std::int64_t q_start = 0;
  DType k_dtype{}, v_dtype{}, q_dtype{};
  int sliding_window = 0;   ///< 0 = none
  bool has_o_gram = false;  ///< [num_kv_heads, D, D] fp32 beside k and v
};

/// What the dump says about its model. Missing attributes keep these defaults.
struct DumpInfo {
  std::string path;
  std::string format;  ///< "hdf5", "safetensors", "npy", "npz"
  std::string model;
  std::string source;
  double sm_scale = 0;    ///< 0 = 1 / sqrt(head_dim)
  double rope_theta = 0;  ///< 0 = unknown or no RoPE
  bool rope_applied = false;
  bool causal = true;
  std::map<std::string, std::string> attributes;  ///< every root attribute as text, kept in the container
  std::vector<LayerInfo> layers;                  ///< ascending by layer number
};

enum class Tensor : std::uint8_t { K, V, Q };

struct DumpOptions {
  std::string axes;  ///< order of the axes of K, V, Q in the file: "hsd" (default), "shd", "bhsd", "bshd"; empty = guess from shapes
  std::string dataset_glob;  ///< only layers whose dataset path matches
  bool read_once = false;    ///< each row will be read once: large files are then read past the page cache where they are not in it
};

class Dump {
 public:
  virtual ~Dump() = default;
  virtual const DumpInfo& info() const = 0;
  /// Elements [head, token_begin .. token_begin + count) of one layer (index into info().layers) into out: [count, head_dim] of the
  /// tensor's own dtype. Throws BadInput where the file ends early.
  virtual void read(std::size_t layer_index, Tensor tensor, int head, std::int64_t token_begin, std::int64_t count, void* out) = 0;
  /// [num_kv_heads, D, D] fp32; throws BadInput where there is none.
  virtual std::vector<float> read_o_gram(std::size_t layer_index) = 0;
};

/// Opens by content, not by extension. Throws BadInput ("x.h5: not an HDF5, safetensors, npy or npz file ...").
std::unique_ptr<Dump> open_dump(const std::string& path, const DumpOptions& options = {});

/// Writes a dump in HDF5 (decompress -o back.h5, and tests): same schema, fp16/bf16/fp32, atomically.
class DumpWriter {
 public:
  virtual ~DumpWriter() = default;
  /// data: [heads, tokens, head_dim] of dtype, in pieces: rows of one head in order.
  virtual void write(std::size_t layer_index, Tensor tensor, int head, std::int64_t token_begin, std::int64_t count, const void* rows) = 0;
  /// Makes the file appear under its name. Without it nothing is left behind.
  virtual void commit() = 0;
};
std::unique_ptr<DumpWriter> create_dump(const std::string& path, const DumpInfo& info, DType dtype, bool overwrite);

}  // namespace tq4
