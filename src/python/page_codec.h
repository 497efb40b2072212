// What the caches of either device are built from: the codecs of both sides with the tables they really use, and the page layout.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "tensor.h"
#include "tq4/calibration.h"
#include "tq4/codec.h"
#include "tq4/layout.h"

namespace tq4::python {

/// Tables in place of those a side's spec names; empty vectors keep the spec's. Boundaries default to the midpoints of centroids, centroids to
/// points between boundaries.
struct OwnTables {
  std::vector<float> rotation;                ///< [D, D]
  std::vector<double> centroids, boundaries;  ///< [2^bits], [2^bits - 1]
};
/// From None or (rotation, centroids, boundaries), each None or a CPU tensor of fp32.
std::optional<OwnTables> own_tables(nb::handle object, int head_dim);

/// The layer's tables; null without a calibration. Throws Refusal where it has no such layer or one of another head_dim.
const LayerCalibration* calibrated_layer(const Calibration* calibration, int layer, int head_dim);
/// The codec of one side. `calibration` and `own` may be null.
Codec side_codec(const SideSpec& spec, int head_dim, const SideCalibration* calibration, const OwnTables* own);

/// Bytes that lie side by side: a page (native), a token's row (turboquant-vllm), a head's slot (vllm).
std::int64_t piece_bytes(const PageLayout& layout);
/// Throws Refusal (ShapeError) unless the uint8 tensor holds pages of the layout: [num_blocks, bytes], or the layout's own axes.
void need_pages(const PageLayout& layout, std::int64_t piece, const Tensor& cache);

/// Both sides, and where their bytes lie.
struct PageCodec {
  CodecSpec spec;
  std::shared_ptr<const Calibration> calibration;
  const LayerCalibration* layer = nullptr;
  bool own = false;  ///< either side has tables of its own
  Codec k, v;
  PageLayout layout;
  std::int64_t piece = 0;  ///< piece_bytes()

  /// block_stride 0 = dense pages; else the strides are taken as given (turboquant-vllm: token; vllm: token, head).
  PageCodec(const std::string& spec_json, const std::string& layout_name, int num_kv_heads, int head_dim, int block_size,
            std::shared_ptr<const Calibration> calibration, int layer, nb::handle k_tables, nb::handle v_tables, std::int64_t block_stride,
            std::int64_t token_stride, std::int64_t head_stride);
};

}  // namespace tq4::python
