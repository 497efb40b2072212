// Checks and construction of PageCodec.
#include "page_codec.h"

#include <algorithm>

#include "tq4/error.h"

namespace tq4::python {
namespace {

std::vector<float> floats(nb::handle object, const char* name, const std::vector<std::int64_t>& shape) {
  if (object.is_none()) return {};
  const Tensor values = cpu_tensor(object, name, {DType::F32});
  need_shape(values.shape, shape, name);
  return {values.as<const float>(), values.as<const float>() + values.size()};
}

void check_head_dim(int head_dim) {
  if (head_dim < 32 || head_dim > 512 || head_dim % 8 != 0) {
    throw Refusal{"HeadDimError", "head_dim must be a multiple of 8 from 32 to 512, not " + std::to_string(head_dim)};
  }
}

const SideCalibration* side_of(const LayerCalibration* layer, Side side) {
  return layer == nullptr ? nullptr : side == Side::K ? &layer->k : &layer->v;
}

const OwnTables* address(const std::optional<OwnTables>& tables) { return tables ? &*tables : nullptr; }

}  // namespace

std::optional<OwnTables> own_tables(nb::handle object, int head_dim) {
  if (object.is_none()) return std::nullopt;
  nb::tuple parts;
  if (!nb::try_cast(object, parts, false) || parts.size() != 3) throw Refusal{"UsageError", "tables are (rotation, centroids, boundaries)"};
  OwnTables tables;
  tables.rotation = floats(parts[0], "rotation", {head_dim, head_dim});
  const std::vector<float> centroids = floats(parts[1], "centroids", {-1}), boundaries = floats(parts[2], "boundaries", {-1});
  tables.centroids.assign(centroids.begin(), centroids.end());
  tables.boundaries.assign(boundaries.begin(), boundaries.end());
  if (tables.boundaries.empty()) {
    for (std::size_t i = 1; i < centroids.size(); ++i) tables.boundaries.push_back((tables.centroids[i - 1] + tables.centroids[i]) / 2);
  } else if (centroids.empty()) {
    tables.centroids.push_back(2 * tables.boundaries.front());
    for (std::size_t i = 1; i < boundaries.size(); ++i) tables.centroids.push_back((tables.boundaries[i - 1] + tables.boundaries[i]) / 2);
    tables.centroids.push_back(2 * tables.boundaries.back());
  }
  return tables;
}

const LayerCalibration* calibrated_layer(const Calibration* calibration, int layer, int head_dim) {
  check_head_dim(head_dim);
  if (calibration == nullptr) return nullptr;
  const LayerCalibration* found = calibration->find(layer);
  if (found == nullptr) throw Refusal{"UsageError", "the calibration has no layer " + std::to_string(layer)};
  if (found->head_dim != head_dim) {
    throw Refusal{"HeadDimError",
                  "the calibration's layer has head_dim " + std::to_string(found->head_dim) + ", not " + std::to_string(head_dim)};
  }
  return found;
}

Codec side_codec(const SideSpec& spec, int head_dim, const SideCalibration* calibration, const OwnTables* own) {
  check_head_dim(head_dim);
  validate(spec, head_dim);
  const bool pairs = calibration != nullptr && !calibration->pair_points.empty() && spec.pair_codebook;
  if (!pairs && own == nullptr) return Codec(spec, head_dim);
  const Codec plain(spec, head_dim);
  Codebook book = plain.codebook();
  Rotation rotation = plain.rotation();
  if (own != nullptr && !own->rotation.empty()) {
    if (!rotation.blocks.empty()) throw Refusal{"UsageError", "a Hadamard rotation takes no matrix"};
    rotation.matrix = own->rotation;
  }
  if (own != nullptr && !own->centroids.empty()) {
    book.centroids = own->centroids;
    book.boundaries = own->boundaries;
  }
  if (!pairs) return Codec(spec, head_dim, std::move(book), std::move(rotation), nullptr);
  const PairTable table{spec.bits, head_dim, calibration->pair_points};
  return Codec(spec, head_dim, std::move(book), std::move(rotation), &table);
}

std::int64_t piece_bytes(const PageLayout& layout) {
  const PageLayout dense = make_layout(layout.kind, layout.spec, layout.num_kv_heads, layout.head_dim, layout.block_size);
  return layout.kind == LayoutKind::Native           ? page_bytes(dense)
         : layout.kind == LayoutKind::TurboquantVllm ? dense.token_stride
                                                     : dense.head_stride;
}

void need_pages(const PageLayout& layout, std::int64_t piece, const Tensor& cache) {
  const std::int64_t tokens = layout.block_size, heads = layout.num_kv_heads;
  bool fits = cache.ndim() >= 2 && (cache.dim(0) <= 1 || cache.stride(0) == layout.block_stride) && cache.stride(cache.ndim() - 1) == 1;
  if (cache.ndim() == 2) {
    const std::int64_t before_last =
        layout.kind == LayoutKind::Native ? 0 : (tokens - 1) * layout.token_stride + (heads - 1) * layout.head_stride;
    fits = fits && cache.dim(1) >= before_last + piece;
  } else if (cache.ndim() == 3) {
    fits = fits && layout.kind == LayoutKind::TurboquantVllm && cache.dim(1) == tokens && cache.stride(1) == layout.token_stride &&
           cache.dim(2) >= piece;
  } else {
    fits = fits && cache.ndim() == 4 && layout.kind == LayoutKind::Vllm && cache.dim(1) == tokens &&
           cache.stride(1) == layout.token_stride && cache.dim(2) == heads && cache.stride(2) == layout.head_stride &&
           cache.dim(3) >= piece;
  }
  if (!fits) {
    throw Refusal{"ShapeError", "a cache of shape " + shape_text(cache.shape) + " does not hold pages of this layout: " +
                                    std::to_string(layout.block_stride) + " bytes from block to block, " + std::to_string(tokens) +
                                    " tokens a block, pieces of " + std::to_string(piece) + " bytes"};
  }
}

PageCodec::PageCodec(const std::string& spec_json, const std::string& layout_name, int num_kv_heads, int head_dim, int block_size,
                     std::shared_ptr<const Calibration> calibration_, int layer_number, nb::handle k_tables, nb::handle v_tables,
                     std::int64_t block_stride, std::int64_t token_stride, std::int64_t head_stride)
    : spec(spec_from_json(spec_json)),
      calibration(std::move(calibration_)),
      layer(calibrated_layer(calibration.get(), layer_number, head_dim)),
      own(!k_tables.is_none() || !v_tables.is_none()),
      k(side_codec(spec.k, head_dim, side_of(layer, Side::K), address(own_tables(k_tables, head_dim)))),
      v(side_codec(spec.v, head_dim, side_of(layer, Side::V), address(own_tables(v_tables, head_dim)))) {
  if (num_kv_heads < 1) throw Refusal{"UsageError", "num_kv_heads must be at least 1"};
  if (layer != nullptr && layer->num_kv_heads != num_kv_heads) {
    throw Refusal{"ShapeError",
                  "the calibration's layer has " + std::to_string(layer->num_kv_heads) + " kv heads, not " + std::to_string(num_kv_heads)};
  }
  layout = make_layout(layout_from_name(layout_name), spec, num_kv_heads, head_dim, block_size);
  piece = piece_bytes(layout);
  if (block_stride == 0) return;
  layout.block_stride = block_stride;
  if (layout.kind == LayoutKind::TurboquantVllm) layout.token_stride = token_stride;
  if (layout.kind == LayoutKind::Vllm) {
    layout.token_stride = token_stride;
    layout.head_stride = head_stride;
  }
  const std::int64_t least = layout.kind == LayoutKind::Native           ? block_stride
                             : layout.kind == LayoutKind::TurboquantVllm ? token_stride
                                                                         : std::min(token_stride, head_stride);
  if (least < piece || block_stride < piece) {
    throw Refusal{"ShapeError", "a " +
                                    std::string(layout.kind == LayoutKind::Native           ? "page"
                                                : layout.kind == LayoutKind::TurboquantVllm ? "row"
                                                                                            : "slot") +
                                    " takes " + std::to_string(piece) + " bytes; these strides leave " + std::to_string(least)};
  }
}

}  // namespace tq4::python
