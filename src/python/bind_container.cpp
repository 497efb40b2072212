// Container: a .tq4 file opened for reading. Hands out shapes first and decodes only the ranges it is asked for.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/unique_ptr.h>

#include "bindings.h"
#include "tensor.h"
#include "tq4/container.h"
#include "tq4/error.h"

namespace tq4::python {
namespace {

/// Throws Refusal unless index names a layer.
const StoredLayer& layer_at(const Container& file, std::size_t index) {
  if (index >= file.info().layers.size()) throw Refusal{"UsageError", "no layer with index " + std::to_string(index)};
  return file.info().layers[index];
}

nb::dict info(const Container& file) {
  const ContainerInfo& info = file.info();
  nb::dict result;
  result["format_version"] = info.format_version;
  result["spec_json"] = spec_to_json(info.spec);
  result["spec_name"] = spec_name(info.spec);
  result["producer"] = info.producer;
  result["model"] = info.dump.model;
  result["source"] = info.dump.source;
  nb::dict attributes;
  for (const auto& [name, value] : info.dump.attributes)
    attributes[nb::str(name.c_str(), name.size())] = nb::str(value.c_str(), value.size());
  result["attributes"] = attributes;
  result["calibrated"] = info.calibrated;
  result["file_bytes"] = info.file_bytes;
  result["original_bytes"] = info.original_bytes;
  nb::list layers;
  for (const StoredLayer& layer : info.layers) {
    nb::dict one;
    one["number"] = layer.shape.layer;
    one["num_kv_heads"] = layer.shape.num_kv_heads;
    one["head_dim"] = layer.shape.head_dim;
    one["tokens"] = layer.shape.tokens;
    one["dtype"] = std::string(dtype_name(layer.shape.k_dtype));
    one["passthrough"] = layer.passthrough;
    one["reason"] = layer.reason;
    one["exact_first"] = layer.exact_first;
    one["exact_last"] = layer.exact_last;
    one["k_bytes"] = layer.k_bytes;
    one["v_bytes"] = layer.v_bytes;
    layers.append(one);
  }
  result["layers"] = layers;
  return result;
}

/// Tokens [begin, begin + count) of heads [head, head + heads) into out [heads, count, head_dim] fp32.
void decode(Container& file, std::size_t layer_index, const std::string& side, int head, int heads, std::int64_t begin, std::int64_t count,
            nb::handle out, int threads) {
  const LayerInfo& shape = layer_at(file, layer_index).shape;
  if (head < 0 || heads < 0 || head + heads > shape.num_kv_heads || begin < 0 || count < 0 || begin + count > shape.tokens) {
    throw Refusal{"UsageError", "heads or tokens past the end of the layer"};
  }
  const Tensor x = cpu_tensor(out, "out", {DType::F32}, true);
  need_shape(x.shape, {heads, count, shape.head_dim}, "out");
  Exec exec;
  exec.threads = threads;
  nb::gil_scoped_release unlocked;
  for (int h = 0; h < heads; ++h) {
    file.decode(layer_index, side == "k" ? Side::K : Side::V, head + h, begin, count,
                static_cast<float*>(x.data) + h * count * shape.head_dim, exec);
  }
}

}  // namespace

void bind_container(nb::module_& m) {
  nb::class_<Container>(m, "Container")
      .def("info", &info)
      .def("decode", &decode, nb::arg("layer_index"), nb::arg("side"), nb::arg("head"), nb::arg("heads"), nb::arg("begin"),
           nb::arg("count"), nb::arg("out").none(), nb::arg("threads"))
      .def("verify", &Container::verify, nb::call_guard<nb::gil_scoped_release>());
  m.def(
      "open_container",
      [](const std::string& path) {
        nb::gil_scoped_release unlocked;
        return open_container(path);
      },
      nb::arg("path"));
}

}  // namespace tq4::python
