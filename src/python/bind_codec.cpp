// SideCodec: one side of a codec with its calibration, encoding and decoding whole tensors outside the interpreter's lock.
#include <nanobind/nanobind.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>

#include <algorithm>

#include "bindings.h"
#include "page_codec.h"
#include "tensor.h"
#include "tq4/calibration.h"
#include "tq4/container.h"
#include "tq4/error.h"

namespace tq4::python {
namespace {

/// Vectors of the buffer that strided input and narrow output go through.
constexpr std::int64_t kGathered = 4096;

class SideCodec {
 public:
  /// side "k" or "v". `calibration` (may be null) is looked up at `layer`.
  SideCodec(const std::string& spec_json, const std::string& side, int head_dim, std::shared_ptr<const Calibration> calibration, int layer,
            const OwnTables* own)
      : side_(side == "k" ? Side::K : Side::V), calibration_(std::move(calibration)), codec_(make(spec_json, head_dim, layer, own)) {}

  const Codec& codec() const { return codec_; }

  nb::tuple encode(nb::handle x, int threads, bool zero_nonfinite, std::int64_t position0, int repeat) const {
    const Tensor in = tensor_on(x, "x", {DType::F16, DType::BF16, DType::F32}, false, 0);
    need_vectors(in, "x", codec_.head_dim());
    const std::vector<std::int64_t> leading(in.shape.begin(), in.shape.end() - 1);
    const auto [heads, tokens] = split(leading);
    Planes planes(codec_, heads * tokens);
    Exec exec;
    exec.threads = threads;
    exec.nonfinite = zero_nonfinite ? NonFinite::Zero : NonFinite::Refuse;
    {
      nb::gil_scoped_release unlocked;
      std::vector<std::uint8_t> dense;
      const std::int64_t step = in.dense() ? std::max<std::int64_t>(tokens, 1) : kGathered;
      for (std::int64_t run = 0; run < heads * repeat; ++run) {  // repeat: times over (experiments/python_overhead)
        const std::int64_t head = run % heads;
        for (std::int64_t token = 0; token < tokens; token += step) {
          const std::int64_t first = head * tokens + token, count = std::min(step, tokens - token);
          codec_.encode(gather_rows(in, first, count, dense), in.dtype, count, planes.out(codec_, first),
                        transform(head, position0 + token), exec);
        }
      }
    }
    return planes_to_python(codec_, std::move(planes), leading);
  }

  /// Into `out` of the vectors' shape, fp32, fp16 or bf16.
  void decode(nb::handle encoded, nb::handle out, int threads, bool rotated, std::int64_t position0) const {
    std::vector<std::int64_t> shape;
    const Planes planes = planes_from_python(codec_, encoded, shape);
    const auto [heads, tokens] = split(shape);
    shape.push_back(codec_.head_dim());
    const Tensor x = cpu_tensor(out, "out", {DType::F32, DType::F16, DType::BF16}, true);
    need_shape(x.shape, shape, "out");
    Exec exec;
    exec.threads = threads;
    nb::gil_scoped_release unlocked;
    const std::int64_t dim = codec_.head_dim();
    std::vector<float> wide;
    const std::int64_t step = x.dtype == DType::F32 ? std::max<std::int64_t>(tokens, 1) : kGathered;
    for (std::int64_t head = 0; head < heads; ++head) {
      for (std::int64_t token = 0; token < tokens; token += step) {
        const std::int64_t count = std::min(step, tokens - token), first = head * tokens + token;
        float* target = static_cast<float*>(x.data) + first * dim;
        if (x.dtype != DType::F32) {
          wide.resize(static_cast<std::size_t>(count * dim));
          target = wide.data();
        }
        if (rotated) {
          codec_.decode_rotated(planes.in(codec_, first), count, target, exec);
        } else {
          codec_.decode(planes.in(codec_, first), count, target, transform(head, position0 + token), exec);
        }
        if (x.dtype != DType::F32) {
          from_float(wide.data(), wide.size(), x.dtype, static_cast<std::uint16_t*>(x.data) + first * dim);
        }
      }
    }
  }

 private:
  Codec make(const std::string& spec_json, int head_dim, int layer, const OwnTables* own) {
    const CodecSpec both = spec_from_json(spec_json);
    layer_ = calibrated_layer(calibration_.get(), layer, head_dim);
    return side_codec(side_ == Side::K ? both.k : both.v, head_dim,
                      layer_ == nullptr  ? nullptr
                      : side_ == Side::K ? &layer_->k
                                         : &layer_->v,
                      own);
  }

  /// Heads and tokens a head. Without a calibration heads do not differ and all vectors are one run.
  std::pair<std::int64_t, std::int64_t> split(const std::vector<std::int64_t>& leading) const {
    if (layer_ == nullptr) return {1, elements(leading)};
    need_shape(leading, {layer_->num_kv_heads, -1}, "a calibrated side ([num_kv_heads, tokens] before head_dim)");
    return {leading[0], leading[1]};
  }

  HeadTransform transform(std::int64_t head, std::int64_t position0) const {
    return head_transform(layer_, side_, static_cast<int>(head), position0);
  }

  Side side_;
  std::shared_ptr<const Calibration> calibration_;
  const LayerCalibration* layer_ = nullptr;
  Codec codec_;
};

}  // namespace

void bind_codec(nb::module_& m) {
  nb::class_<Calibration>(m, "Calibration")
      .def_ro("model", &Calibration::model)
      .def_ro("tokens", &Calibration::tokens)
      .def_prop_ro("spec_json", [](const Calibration& c) { return spec_to_json(c.spec); })
      .def_prop_ro("layers", [](const Calibration& c) {
        nb::list layers;
        for (const LayerCalibration& layer : c.layers) layers.append(nb::make_tuple(layer.layer, layer.num_kv_heads, layer.head_dim));
        return layers;
      });
  m.def(
      "read_calibration",
      [](const std::string& path) {
        nb::gil_scoped_release unlocked;
        return std::make_shared<Calibration>(read_calibration(path));
      },
      nb::arg("path"));

  nb::class_<SideCodec>(m, "SideCodec")
      .def(
          "__init__",
          [](SideCodec* self, const std::string& spec_json, const std::string& side, int head_dim, std::shared_ptr<Calibration> calibration,
             int layer, nb::object tables) {
            const std::optional<OwnTables> own = own_tables(tables, head_dim);
            nb::gil_scoped_release unlocked;
            new (self) SideCodec(spec_json, side, head_dim, std::move(calibration), layer, own ? &*own : nullptr);
          },
          nb::arg("spec_json"), nb::arg("side"), nb::arg("head_dim"), nb::arg("calibration").none(), nb::arg("layer"),
          nb::arg("tables").none() = nb::none())
      .def("encode", &SideCodec::encode, nb::arg("x").none(), nb::arg("threads"), nb::arg("zero_nonfinite"), nb::arg("position0"),
           nb::arg("repeat") = 1)
      .def("decode", &SideCodec::decode, nb::arg("encoded"), nb::arg("out").none(), nb::arg("threads"), nb::arg("rotated"),
           nb::arg("position0"))
      .def_prop_ro("code_bytes", [](const SideCodec& c) { return c.codec().code_bytes(); })
      .def_prop_ro("vector_bytes", [](const SideCodec& c) { return c.codec().vector_bytes(); })
      .def_prop_ro("has_scale", [](const SideCodec& c) { return c.codec().has_scale(); })
      .def_prop_ro("has_zero", [](const SideCodec& c) { return c.codec().has_zero(); })
      .def_prop_ro("has_signs", [](const SideCodec& c) { return c.codec().has_signs(); })
      .def_prop_ro("theoretical_mse", [](const SideCodec& c) { return c.codec().theoretical_mse(); });
}

}  // namespace tq4::python
