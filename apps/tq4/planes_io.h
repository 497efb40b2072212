// Encoded layers in memory, whatever file they come from or go to: containers hold planes head by head, pages token by token. What `convert`
// moves between the two.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "common_args.h"
#include "planes.h"
#include "tq4/container.h"
#include "tq4/page_file.h"

namespace tq4::cli {

/// All tokens of one layer, planes token-major: vector token * num_kv_heads + head.
struct LayerPlanes {
  LayerInfo shape;
  PlaneBuffers k, v;
};

class PlaneSource {
 public:
  virtual ~PlaneSource() = default;
  virtual const CodecSpec& spec() const = 0;
  virtual const DumpInfo& info() const = 0;  ///< what is known of the model; its layers are layers()
  virtual const std::vector<LayerInfo>& layers() const = 0;
  virtual const Calibration* calibration() const = 0;
  virtual LayerPlanes read(std::size_t index) = 0;
};
/// A container without fp16 layers or tokens (pages have no place for them: Unsupported), or one sequence of a page file. `calibration` is
/// for page files only and outlives the source.
std::unique_ptr<PlaneSource> open_plane_source(const std::string& path, const std::optional<PageHint>& hint, std::size_t sequence,
                                               const Selection& selection, const Calibration* calibration);

/// The spec with the scale widths that a layout stores.
CodecSpec spec_for_layout(CodecSpec spec, LayoutKind layout);
/// Scales and zeros of `from` rounded to the widths of `to`. Throws BadInput when a scale does not fit fp16.
void round_scales(LayerPlanes& planes, const CodecSpec& from, const CodecSpec& to);

/// Root attributes of a page file: the dump's, and what is needed to make a container of it again.
std::map<std::string, std::string> page_attributes(const PlaneSource& source);

/// Writes every layer of a source to a container; `layer_done` after each.
void write_container(PlaneSource& source, const std::string& path, bool overwrite, const std::function<void()>& layer_done);

}  // namespace tq4::cli
