// See encode_dump.h. Jobs are runs of tokens of one head (at most 2 MiB of input each), in file order; the pipeline overlaps reading,
// encoding and writing and keeps memory bounded.
#include "encode_dump.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <memory>

#include "pipeline.h"
#include "planes.h"
#include "progress.h"
#include "tq4/device_rows.h"

namespace tq4::cli {
namespace {

constexpr std::int64_t kJobBytes = 8 << 20;  // of input: smaller jobs spend a tenth of the time on taking turns
constexpr std::int64_t kMeasured = 1 << 18;  // vectors decoded again to measure the error, spread over all jobs; fewer: all of them

struct LayerPlan {
  std::size_t dump_index = 0;
  std::size_t stored_index = 0;
  LayerInfo source;
  const Codec* codec[2] = {nullptr, nullptr};
  const LayerCalibration* calibration = nullptr;
  const gpu::DeviceRows* device = nullptr;  ///< encodes instead of the codecs
};

struct Job {
  std::size_t layer = 0;  // index into plans
  Side side = Side::K;
  int head = 0;
  std::int64_t begin = 0, count = 0;  // tokens of the dump
  bool exact = false;
  std::int64_t index = 0;  // where in the container: among the encoded tokens, or among the exact ones
};

struct Slot {
  std::vector<std::uint8_t> raw;
  std::vector<float> x, back;
  std::vector<std::uint16_t> halves;
  PlaneBuffers planes;
  VectorError error;
};

const char* side_name(Side side) { return side == Side::K ? "K" : "V"; }
DType side_dtype(const LayerInfo& layer, Side side) { return side == Side::K ? layer.k_dtype : layer.v_dtype; }

[[noreturn]] void refuse_value(const Dump& dump, const LayerPlan& plan, const Job& job, std::int64_t element, float value,
                               const std::string& why) {
  const int dim = plan.source.head_dim;
  throw Error(ErrorCode::BadInput,
              fmt::format("layer {} {} head {} token {} coordinate {} is {}{}", plan.source.layer, side_name(job.side), job.head,
                          job.begin + element / dim, element % dim, std::isnan(value) ? "NaN" : fmt::format("{}", value), why),
              dump.info().path);
}

/// Codecs are shared by all layers of a head_dim, but for calibrated pair tables, which are a layer's own.
class Codecs {
 public:
  Codecs(const CodecSpec& spec) : spec_(spec) {}
  const Codec* get(Side side, const LayerInfo& layer, const LayerCalibration* calibration) {
    const SideSpec& side_spec = side == Side::K ? spec_.k : spec_.v;
    const SideCalibration* tables = calibration == nullptr ? nullptr : side == Side::K ? &calibration->k : &calibration->v;
    const bool own = tables != nullptr && !tables->pair_points.empty();
    std::unique_ptr<Codec>& entry = codecs_[{side == Side::K ? 0 : 1, layer.head_dim, own ? layer.layer : -1}];
    if (entry == nullptr) {
      if (own) {
        const PairTable pairs{side_spec.bits, layer.head_dim, tables->pair_points};
        entry = std::make_unique<Codec>(side_spec, layer.head_dim, make_codebook(side_spec.codebook, side_spec.bits, layer.head_dim),
                                        make_rotation(side_spec.rotation, layer.head_dim, side_spec.seed), &pairs);
      } else {
        entry = std::make_unique<Codec>(side_spec, layer.head_dim);
      }
    }
    return entry.get();
  }

 private:
  CodecSpec spec_;
  std::map<std::tuple<int, int, int>, std::unique_ptr<Codec>> codecs_;
};

/// Tables on the GPU, shared likewise; a calibrated layer has its own.
class DeviceTables {
 public:
  DeviceTables(const CodecSpec& spec, std::optional<int> device) : spec_(spec), device_(device) {}
  const gpu::DeviceRows* get(const LayerInfo& layer, const LayerCalibration* calibration) {
    if (!device_) return nullptr;
    std::unique_ptr<gpu::DeviceRows>& entry = tables_[{layer.head_dim, calibration != nullptr ? layer.layer : -1}];
    if (entry == nullptr) entry = std::make_unique<gpu::DeviceRows>(spec_, layer.head_dim, calibration, *device_);
    return entry.get();
  }

 private:
  CodecSpec spec_;
  std::optional<int> device_;
  std::map<std::pair<int, int>, std::unique_ptr<gpu::DeviceRows>> tables_;
};

StoredLayer stored_layer(const LayerInfo& source, const EncodeRequest& request) {
  StoredLayer stored;
  stored.shape = source;
  stored.shape.num_q_heads = source.num_q_heads;
  stored.shape.q_tokens = 0;
  stored.shape.has_o_gram = false;
  const bool skipped = std::binary_search(request.skip_layers.begin(), request.skip_layers.end(), source.layer);
  const std::int64_t exact = std::int64_t{request.spec.sinks} + request.spec.window;
  if (skipped)
    stored.reason = "--skip-layers";
  else if (source.tokens > 0 && exact >= source.tokens)
    stored.reason = fmt::format("{} tokens, all of them in sinks and window", source.tokens);
  stored.passthrough = !stored.reason.empty();
  if (!stored.passthrough) {
    stored.exact_first = std::min<std::int64_t>(request.spec.sinks, source.tokens);
    stored.exact_last = std::min<std::int64_t>(request.spec.window, source.tokens - stored.exact_first);
  }
  return stored;
}

void append_jobs(std::vector<Job>& jobs, std::size_t plan_index, const StoredLayer& stored) {
  const LayerInfo& shape = stored.shape;
  const std::int64_t tokens = shape.tokens;
  const std::int64_t first = stored.passthrough ? tokens : stored.exact_first;
  const std::int64_t last = stored.passthrough ? 0 : stored.exact_last;
  for (const Side side : {Side::K, Side::V}) {
    const auto row_bytes = static_cast<std::int64_t>(dtype_size(side_dtype(shape, side))) * shape.head_dim;
    const std::int64_t run = std::max<std::int64_t>(64, kJobBytes / row_bytes / 64 * 64);
    for (int head = 0; head < shape.num_kv_heads; ++head) {
      const auto part = [&](std::int64_t begin, std::int64_t end, bool exact, std::int64_t index) {
        for (std::int64_t at = begin; at < end; at += run) {
          const std::int64_t count = std::min(run, end - at);
          jobs.push_back({plan_index, side, head, at, count, exact, index + at - begin});
        }
      };
      part(0, first, true, 0);
      part(first, tokens - last, false, 0);
      part(tokens - last, tokens, true, first);
    }
  }
}

class Encoder {
 public:
  Encoder(Dump& dump, const std::string& path, const EncodeRequest& request)
      : dump_(dump), request_(request), codecs_(request.spec), device_tables_(request.spec, request.cuda_device) {
    plan(path);
  }

  CompressResult run(const std::string& path) {
    std::uint64_t bytes = 0;
    for (const LayerResult& layer : result_.layers) bytes += layer.original_bytes;
    result_.original_bytes = bytes;
    result_.measured_all = request_.measure == Measure::All || (request_.measure == Measure::Auto && result_.encoded_vectors <= kMeasured);
    {
      Progress progress("compress", bytes, Progress::Unit::Bytes, request_.quiet);
      run_pipeline<Slot>(
          jobs_.size(), request_.threads, [&](std::size_t i, Slot& slot) { read(jobs_[i], slot); },
          [&](std::size_t i, Slot& slot) { encode(jobs_[i], slot); },
          [&](std::size_t i, Slot& slot) {
            write(jobs_[i], slot);
            progress.add(slot.raw.size());
          });
    }
    writer_->commit();
    // Sizes as they stand in the file, read back from it.
    const std::unique_ptr<Container> container = open_container(path);
    const ContainerInfo& info = container->info();
    result_.file_bytes = info.file_bytes;
    for (std::size_t i = 0; i < result_.layers.size(); ++i) result_.layers[i].stored = info.layers[i];
    result_.measured_all = result_.measured_vectors == result_.encoded_vectors;
    return std::move(result_);
  }

 private:
  void plan(const std::string& path) {
    std::vector<StoredLayer> stored;
    const std::vector<LayerInfo>& layers = dump_.info().layers;
    for (const int skipped : request_.skip_layers) {
      if (std::none_of(layers.begin(), layers.end(), [&](const LayerInfo& layer) { return layer.layer == skipped; }))
        throw Error(ErrorCode::Usage, fmt::format("layer {} is not in {}", skipped, dump_.info().path), "--skip-layers");
    }
    for (std::size_t i = 0; i < layers.size(); ++i) {
      const LayerInfo& source = layers[i];
      if (!request_.selection.has_layer(source.layer)) continue;
      LayerPlan plan;
      plan.dump_index = i;
      plan.stored_index = stored.size();
      plan.source = source;
      stored.push_back(stored_layer(source, request_));
      LayerResult result;
      result.stored = stored.back();
      const auto vectors = static_cast<std::uint64_t>(source.num_kv_heads) * static_cast<std::uint64_t>(source.tokens);
      result.original_bytes =
          vectors * static_cast<std::uint64_t>(source.head_dim) * (dtype_size(source.k_dtype) + dtype_size(source.v_dtype));
      if (!stored.back().passthrough) {
        if (request_.calibration != nullptr) plan.calibration = request_.calibration->find(source.layer);
        plan.device = device_tables_.get(source, plan.calibration);
        for (const Side side : {Side::K, Side::V}) {
          const Codec* codec = codecs_.get(side, source, plan.calibration);
          plan.codec[side == Side::K ? 0 : 1] = codec;
          // The theory is that of an orthogonal rotation of random vectors; a calibrated transform is neither.
          (side == Side::K ? result.k : result.v).theory = plan.calibration == nullptr ? codec->theoretical_mse() : std::nan("");
        }
        result_.encoded_vectors +=
            2 * std::int64_t{source.num_kv_heads} * (source.tokens - stored.back().exact_first - stored.back().exact_last);
      }
      append_jobs(jobs_, plans_.size(), stored.back());
      plans_.push_back(plan);
      result_.layers.push_back(std::move(result));
    }
    if (plans_.empty()) throw Error(ErrorCode::BadInput, "holds no layer to compress", dump_.info().path);
    writer_ = create_container(path, request_.spec, dump_.info(), stored, request_.calibration, request_.overwrite);
  }

  void read(const Job& job, Slot& slot) {
    const LayerPlan& plan = plans_[job.layer];
    const DType dtype = side_dtype(plan.source, job.side);
    slot.raw.resize(static_cast<std::size_t>(job.count * plan.source.head_dim) * dtype_size(dtype));
    dump_.read(plan.dump_index, job.side == Side::K ? Tensor::K : Tensor::V, job.head, job.begin, job.count, slot.raw.data());
  }

  void encode(const Job& job, Slot& slot) {
    const LayerPlan& plan = plans_[job.layer];
    const DType dtype = side_dtype(plan.source, job.side);
    const std::int64_t values = job.count * plan.source.head_dim;
    if (job.exact) {
      encode_exact(plan, job, dtype, values, slot);
      return;
    }
    const Codec& codec = *plan.codec[job.side == Side::K ? 0 : 1];
    slot.planes.resize(codec, job.count);
    slot.error = {};
    const std::int64_t measured = measured_rows(job.count);
    if (plan.device != nullptr) {
      to_floats(slot, dtype, values);
      const bool changed = settle_nonfinite(plan, job, slot);
      plan.device->encode(job.side, job.head, changed ? static_cast<const void*>(slot.x.data()) : slot.raw.data(),
                          changed ? DType::F32 : dtype, job.count, job.begin, slot.planes.out());
    } else {
      encode_on_cpu(plan, job, codec, dtype, values, slot);
      to_floats(slot, dtype, measured * plan.source.head_dim);
      for (float& value : slot.x) value = std::isfinite(value) ? value : 0.0f;
    }
    if (measured == 0) return;
    slot.back.resize(static_cast<std::size_t>(measured * plan.source.head_dim));
    if (plan.device != nullptr)
      plan.device->decode(job.side, job.head, slot.planes.in(), measured, job.begin, slot.back.data());
    else
      codec.decode(slot.planes.in(), measured, slot.back.data(), head_transform(plan.calibration, job.side, job.head, job.begin),
                   {1, false, request_.nonfinite});
    slot.error = vector_error(slot.x.data(), slot.back.data(), measured, plan.source.head_dim);
  }

  void encode_on_cpu(const LayerPlan& plan, const Job& job, const Codec& codec, DType dtype, std::int64_t values, Slot& slot) {
    try {
      codec.encode(slot.raw.data(), dtype, job.count, slot.planes.out(), head_transform(plan.calibration, job.side, job.head, job.begin),
                   {1, false, request_.nonfinite});
    } catch (const Error& error) {
      if (error.code() != ErrorCode::BadInput) throw;
      to_floats(slot, dtype, values);
      settle_nonfinite(plan, job, slot);
      throw Error(error.code(),
                  fmt::format("layer {} {} head {} tokens {}..{}: {}", plan.source.layer, side_name(job.side), job.head, job.begin,
                              job.begin + job.count - 1, error.what()),
                  dump_.info().path);
    }
  }

  /// Refuses NaN and infinity in slot.x, or makes them 0 and says that there were some.
  bool settle_nonfinite(const LayerPlan& plan, const Job& job, Slot& slot) {
    bool changed = false;
    for (std::size_t i = 0; i < slot.x.size(); ++i) {
      if (std::isfinite(slot.x[i])) continue;
      if (request_.nonfinite == NonFinite::Refuse)
        refuse_value(dump_, plan, job, static_cast<std::int64_t>(i), slot.x[i], "; --nonfinite zero stores 0 instead");
      slot.x[i] = 0;
      changed = true;
    }
    return changed;
  }

  void encode_exact(const LayerPlan& plan, const Job& job, DType dtype, std::int64_t values, Slot& slot) {
    to_floats(slot, dtype, values);
    settle_nonfinite(plan, job, slot);
    slot.halves.resize(slot.x.size());
    for (std::int64_t i = 0; i < values; ++i) {
      const float value = slot.x[static_cast<std::size_t>(i)];
      const std::uint16_t half = float_to_half(value);
      if ((half & 0x7C00u) == 0x7C00u)
        refuse_value(dump_, plan, job, i, value, ", too large for the fp16 that this token or layer is kept in");
      slot.halves[static_cast<std::size_t>(i)] = half;
    }
  }

  void write(const Job& job, Slot& slot) {
    const LayerPlan& plan = plans_[job.layer];
    if (job.exact) {
      writer_->write_exact(plan.stored_index, job.side, job.head, job.index, job.count, slot.halves.data());
      return;
    }
    writer_->write(plan.stored_index, job.side, job.head, job.index, job.count, slot.planes.in());
    LayerResult& layer = result_.layers[job.layer];
    (job.side == Side::K ? layer.k : layer.v).error.add(slot.error);
    result_.measured_vectors += slot.error.vectors;
  }

  std::int64_t measured_rows(std::int64_t count) const {
    if (request_.measure == Measure::None) return 0;
    if (result_.measured_all) return count;
    return std::min(count, (count * kMeasured + result_.encoded_vectors - 1) / result_.encoded_vectors);
  }

  static void to_floats(Slot& slot, DType dtype, std::int64_t values) {
    slot.x.resize(static_cast<std::size_t>(values));
    to_float(slot.raw.data(), dtype, slot.x.size(), slot.x.data());
  }

  Dump& dump_;
  const EncodeRequest& request_;
  Codecs codecs_;
  DeviceTables device_tables_;
  std::vector<LayerPlan> plans_;
  std::vector<Job> jobs_;
  CompressResult result_;
  std::unique_ptr<ContainerWriter> writer_;
};

}  // namespace

CompressResult encode_dump(Dump& dump, const std::string& path, const EncodeRequest& request) {
  return Encoder(dump, path, request).run(path);
}

}  // namespace tq4::cli
