// See planes_io.h.
#include "planes_io.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "tq4/types.h"

namespace tq4::cli {
namespace {

/// Rows of `width` elements: head-major source row i to token-major row i * heads + head, or back.
template <class T>
void spread(const std::vector<T>& from, std::vector<T>& to, std::int64_t tokens, int heads, int head, std::size_t width) {
  for (std::int64_t i = 0; i < tokens; ++i)
    std::copy_n(from.data() + static_cast<std::size_t>(i) * width, width, to.data() + static_cast<std::size_t>(i * heads + head) * width);
}
template <class T>
void gather(const std::vector<T>& from, std::vector<T>& to, std::int64_t tokens, int heads, int head, std::size_t width) {
  for (std::int64_t i = 0; i < tokens; ++i)
    std::copy_n(from.data() + static_cast<std::size_t>(i * heads + head) * width, width, to.data() + static_cast<std::size_t>(i) * width);
}

/// Calls move(plane of a, plane of b, elements a row) for every plane the codec has.
template <class Move>
void for_each_plane(const Codec& codec, PlaneBuffers& a, PlaneBuffers& b, Move move) {
  move(a.codes, b.codes, codec.code_bytes());
  if (codec.has_scale()) move(a.scale, b.scale, std::size_t{1});
  if (codec.has_zero()) move(a.zero, b.zero, std::size_t{1});
  if (codec.has_signs()) {
    move(a.signs, b.signs, static_cast<std::size_t>(codec.head_dim()) / 8);
    move(a.residual_norm, b.residual_norm, std::size_t{1});
  }
}

class ContainerSource final : public PlaneSource {
 public:
  ContainerSource(std::unique_ptr<Container> container, const Selection& selection) : container_(std::move(container)) {
    const ContainerInfo& info = container_->info();
    for (std::size_t i = 0; i < info.layers.size(); ++i) {
      const StoredLayer& layer = info.layers[i];
      if (!selection.has_layer(layer.shape.layer)) continue;
      if (layer.passthrough)
        throw Error(ErrorCode::Unsupported,
                    fmt::format("layer {} is kept in fp16 ({}); pages hold codes only: leave it out with --layers", layer.shape.layer,
                                layer.reason),
                    info.dump.path);
      if (layer.exact_first + layer.exact_last > 0)
        throw Error(ErrorCode::Unsupported,
                    fmt::format("layer {} keeps {} tokens in fp16; pages hold codes only: compress without --sinks and --window",
                                layer.shape.layer, layer.exact_first + layer.exact_last),
                    info.dump.path);
      indices_.push_back(i);
      layers_.push_back(layer.shape);
    }
  }
  const CodecSpec& spec() const override { return container_->info().spec; }
  const DumpInfo& info() const override { return container_->info().dump; }
  const std::vector<LayerInfo>& layers() const override { return layers_; }
  const Calibration* calibration() const override { return container_->calibration(); }

  LayerPlanes read(std::size_t index) override {
    LayerPlanes planes;
    planes.shape = layers_[index];
    const std::int64_t tokens = planes.shape.tokens;
    const int heads = planes.shape.num_kv_heads;
    for (const Side side : {Side::K, Side::V}) {
      const Codec& codec = container_->codec(indices_[index], side);
      PlaneBuffers& all = side == Side::K ? planes.k : planes.v;
      PlaneBuffers one;
      all.resize(codec, tokens * heads);
      one.resize(codec, tokens);
      for (int head = 0; head < heads; ++head) {
        container_->read(indices_[index], side, head, 0, tokens, one.out());
        for_each_plane(codec, one, all,
                       [&](const auto& from, auto& to, std::size_t width) { spread(from, to, tokens, heads, head, width); });
      }
    }
    return planes;
  }

 private:
  std::unique_ptr<Container> container_;
  std::vector<std::size_t> indices_;
  std::vector<LayerInfo> layers_;
};

class PageSource final : public PlaneSource {
 public:
  PageSource(std::unique_ptr<PageFile> file, std::size_t sequence, const Selection& selection, const Calibration* calibration)
      : file_(std::move(file)), sequence_(sequence), calibration_(calibration) {
    const auto& attributes = file_->attributes();
    const auto text = [&](const char* name) {
      const auto found = attributes.find(name);
      return found == attributes.end() ? std::string() : found->second;
    };
    info_.attributes = attributes;
    info_.attributes.erase("tq4_page_file");
    info_.attributes.erase("calibrated");
    info_.model = text("model");
    info_.source = text("source");
    info_.sm_scale = std::strtod(text("sm_scale").c_str(), nullptr);
    info_.rope_theta = std::strtod(text("rope_theta").c_str(), nullptr);
    info_.rope_applied = text("rope_applied") == "true";
    info_.causal = text("causal") != "false";
    if (text("calibrated") == "true" && calibration == nullptr)
      throw Error(ErrorCode::Usage, "these pages were encoded with a calibration; give it with --calibration", "--calibration");
    const DType dtype = text("dtype").empty() ? DType::F16 : dtype_from_name(text("dtype"));
    const std::vector<PagedLayer>& layers = file_->layers();
    for (std::size_t i = 0; i < layers.size(); ++i) {
      const PagedLayer& layer = layers[i];
      if (!selection.has_layer(layer.layer)) continue;
      if (indices_.empty())
        spec_ = layer.layout.spec;
      else if (layer.layout.spec != spec_)
        throw Error(ErrorCode::Unsupported, fmt::format("layers {} and {} have different codecs; convert them one by one (--layers)",
                                                        layers_.front().layer, layer.layer));
      if (sequence >= layer.seq_lens.size())
        throw Error(ErrorCode::Usage, fmt::format("layer {} holds {} sequences", layer.layer, layer.seq_lens.size()), "--sequence");
      LayerInfo shape;
      shape.layer = layer.layer;
      shape.num_kv_heads = layer.layout.num_kv_heads;
      shape.head_dim = layer.layout.head_dim;
      shape.tokens = layer.seq_lens[sequence];
      shape.k_dtype = shape.v_dtype = dtype;
      if (shape.tokens < 0) throw Error(ErrorCode::BadInput, fmt::format("layer {} has a negative length in seq_lens", layer.layer));
      indices_.push_back(i);
      layers_.push_back(shape);
    }
  }
  const CodecSpec& spec() const override { return spec_; }
  const DumpInfo& info() const override { return info_; }
  const std::vector<LayerInfo>& layers() const override { return layers_; }
  const Calibration* calibration() const override { return calibration_; }

  LayerPlanes read(std::size_t index) override {
    LayerPlanes planes;
    planes.shape = layers_[index];
    const PagedLayer& layer = file_->layers()[indices_[index]];
    const std::vector<std::uint8_t> cache = file_->read(indices_[index]);
    const std::vector<std::int64_t> slots = slot_mapping(layer, sequence_, 0, planes.shape.tokens);
    const std::int64_t vectors = planes.shape.tokens * planes.shape.num_kv_heads;
    planes.k.resize(Codec(spec_.k, planes.shape.head_dim), vectors);
    planes.v.resize(Codec(spec_.v, planes.shape.head_dim), vectors);
    read_pages(layer.layout, cache.data(), layer.num_blocks, slots.data(), planes.shape.tokens, planes.k.out(), planes.v.out());
    return planes;
  }

 private:
  std::unique_ptr<PageFile> file_;
  std::size_t sequence_;
  const Calibration* calibration_;
  CodecSpec spec_;
  DumpInfo info_;
  std::vector<std::size_t> indices_;
  std::vector<LayerInfo> layers_;
};

void round_plane(std::vector<float>& plane, ScaleDType from, ScaleDType to, int layer) {
  if (from == to || to == ScaleDType::F32) return;
  for (float& value : plane) {
    const float rounded = half_to_float(float_to_half(value));
    if (!(rounded <= 65504.0f && rounded >= -65504.0f))
      throw Error(ErrorCode::BadInput, fmt::format("layer {} has a scale of {}, which fp16 cannot hold", layer, value));
    value = rounded;
  }
}

}  // namespace

std::unique_ptr<PlaneSource> open_plane_source(const std::string& path, const std::optional<PageHint>& hint, std::size_t sequence,
                                               const Selection& selection, const Calibration* calibration) {
  std::unique_ptr<PlaneSource> source;
  if (is_page_file(path)) {
    source = std::make_unique<PageSource>(open_page_file(path, hint), sequence, selection, calibration);
  } else {
    if (hint) throw Error(ErrorCode::Usage, "describes page caches; the input is none", "--from-layout");
    if (calibration != nullptr) throw Error(ErrorCode::Usage, "a container brings its own calibration", "--calibration");
    source = std::make_unique<ContainerSource>(open_container(path), selection);
  }
  if (source->layers().empty()) throw Error(ErrorCode::Usage, "no layer is left to convert", "--layers");
  return source;
}

CodecSpec spec_for_layout(CodecSpec spec, LayoutKind layout) {
  spec.k.scale_dtype = spec.v.scale_dtype = layout == LayoutKind::TurboquantVllm ? ScaleDType::F32 : ScaleDType::F16;
  return spec;
}

void round_scales(LayerPlanes& planes, const CodecSpec& from, const CodecSpec& to) {
  for (std::vector<float>* plane : {&planes.k.scale, &planes.k.zero})
    round_plane(*plane, from.k.scale_dtype, to.k.scale_dtype, planes.shape.layer);
  for (std::vector<float>* plane : {&planes.v.scale, &planes.v.zero})
    round_plane(*plane, from.v.scale_dtype, to.v.scale_dtype, planes.shape.layer);
}

std::map<std::string, std::string> page_attributes(const PlaneSource& source) {
  const DumpInfo& info = source.info();
  std::map<std::string, std::string> attributes = info.attributes;
  const auto fill = [&](const char* name, const std::string& text) {
    if (!text.empty()) attributes.try_emplace(name, text);
  };
  fill("model", info.model);
  fill("source", info.source);
  if (info.sm_scale != 0) fill("sm_scale", fmt::format("{}", info.sm_scale));
  if (info.rope_theta != 0) fill("rope_theta", fmt::format("{}", info.rope_theta));
  fill("rope_applied", info.rope_applied ? "true" : "false");
  fill("causal", info.causal ? "true" : "false");
  attributes["dtype"] = std::string(dtype_name(source.layers().front().k_dtype));
  if (source.calibration() != nullptr) attributes["calibrated"] = "true";
  return attributes;
}

void write_container(PlaneSource& source, const std::string& path, bool overwrite, const std::function<void()>& layer_done) {
  std::vector<StoredLayer> stored;
  for (const LayerInfo& shape : source.layers()) {
    stored.emplace_back();
    stored.back().shape = shape;
  }
  const std::unique_ptr<ContainerWriter> writer =
      create_container(path, source.spec(), source.info(), stored, source.calibration(), overwrite);
  for (std::size_t i = 0; i < stored.size(); ++i) {
    LayerPlanes planes = source.read(i);
    const std::int64_t tokens = planes.shape.tokens;
    const int heads = planes.shape.num_kv_heads;
    for (const Side side : {Side::K, Side::V}) {
      const Codec codec(side == Side::K ? source.spec().k : source.spec().v, planes.shape.head_dim);
      PlaneBuffers& all = side == Side::K ? planes.k : planes.v;
      PlaneBuffers one;
      one.resize(codec, tokens);
      for (int head = 0; head < heads; ++head) {
        for_each_plane(codec, all, one,
                       [&](const auto& from, auto& to, std::size_t width) { gather(from, to, tokens, heads, head, width); });
        writer->write(i, side, head, 0, tokens, one.in());
      }
    }
    layer_done();
  }
  writer->commit();
}

}  // namespace tq4::cli
