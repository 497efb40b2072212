// Encode and decode vectors in host memory on a GPU: what `tq4 compress`, `decompress` and `eval` do with --device cuda. Who has tensors on the
// device already calls encode() and dequant() of gpu.h with them.
#pragma once

#include <cstdint>
#include <memory>

#include "tq4/gpu.h"

namespace tq4::gpu {

/// The codecs of one layer on one device. Calls may come from any thread; one at a time computes, and waits for its result.
class DeviceRows {
 public:
  /// `layer`: its tables are used (copied); null: none. Throws NoDevice, and Unsupported for what gpu::DeviceCodec refuses.
  DeviceRows(const CodecSpec& spec, int head_dim, const LayerCalibration* layer, int device);
  /// With the tables of two codecs, as a file holds them; k and v are of spec.k and spec.v.
  DeviceRows(const CodecSpec& spec, const Codec& k, const Codec& v, int device);
  ~DeviceRows();
  DeviceRows(const DeviceRows&) = delete;
  DeviceRows& operator=(const DeviceRows&) = delete;

  const Codec& host(Side side) const;  ///< the CPU codec with the same tables
  /// n vectors x [n, D] of kv head `head`, tokens `position` and following, to planes in host memory: Codec::encode's bytes but for coordinates next
  /// to a boundary (encode() of gpu.h says how near). A vector with NaN or infinity gets a scale that is not finite. Codes with feedback are made on
  /// the CPU, as everywhere.
  void encode(Side side, int head, const void* x, DType dtype, std::int64_t n, std::int64_t position, const EncodedOut& out) const;
  /// Planes in host memory to x [n, D] fp32 in original space, as Codec::decode gives them (dequant() of gpu.h says how near).
  void decode(Side side, int head, const EncodedIn& in, std::int64_t n, std::int64_t position, float* x) const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace tq4::gpu
