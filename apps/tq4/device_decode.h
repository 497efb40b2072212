// decompress --device cuda: vectors of a container decoded on a GPU with the tables that the file holds. Exact tokens and layers kept in fp16
// need no decoding and stay on the CPU.
#pragma once

#include <map>
#include <memory>
#include <mutex>

#include "tq4/container.h"
#include "tq4/device_rows.h"

namespace tq4::cli {

class DeviceDecoder {
 public:
  DeviceDecoder(Container& container, int device) : container_(container), device_(device) {}
  /// Container::decode, from any thread.
  void decode(std::size_t layer, Side side, int head, std::int64_t begin, std::int64_t count, float* x);

 private:
  const gpu::DeviceRows& rows_of(std::size_t layer);

  Container& container_;
  int device_;
  std::mutex mutex_;
  std::map<std::pair<int, std::size_t>, std::unique_ptr<gpu::DeviceRows>> rows_;  ///< by head_dim, and layer where it is calibrated
};

}  // namespace tq4::cli
