// Keys and values of a file as fp32, whether it is a dump or a container: what `compare` reads both of its operands through.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "tq4/container.h"
#include "tq4/dump.h"

namespace tq4::cli {

class TensorSource {
 public:
  /// Opens by content. Throws BadInput.
  explicit TensorSource(const std::string& path, const DumpOptions& options = {});
  const std::string& path() const { return path_; }
  const std::vector<LayerInfo>& layers() const { return layers_; }
  /// Index of a layer by its number, or -1.
  int find(int layer) const;
  /// Tokens [begin, begin + count) of one head in original space: x [count, head_dim].
  void read(std::size_t layer_index, Side side, int head, std::int64_t begin, std::int64_t count, std::vector<float>& x);

 private:
  std::string path_;
  std::vector<LayerInfo> layers_;
  std::unique_ptr<Dump> dump_;
  std::unique_ptr<Container> container_;
  std::vector<std::uint8_t> raw_;
};

}  // namespace tq4::cli
