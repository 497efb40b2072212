// Specs by name and as JSON, Lloyd-Max codebooks and rotation matrices: the tables a codec is made of, for looking at and for other code.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>

#include <cstring>

#include "bindings.h"
#include "tq4/codebook.h"
#include "tq4/error.h"
#include "tq4/rotation.h"

namespace tq4::python {
namespace {

template <class T>
nb::object copy_to_numpy(const std::vector<T>& values, const std::vector<std::int64_t>& shape) {
  auto copy = std::unique_ptr<T[]>(new T[values.size()]);
  std::copy(values.begin(), values.end(), copy.get());
  return to_numpy(std::move(copy), shape);
}

/// Names of codebook and rotation kinds as the spec's JSON has them: one spelling everywhere.
template <class Kind>
Kind kind_from_json(const std::string& member, const std::string& name, Kind SideSpec::*field) {
  const std::string plain = spec_to_json(CodecSpec{});
  const std::string key = "\"" + member + "\":";
  std::string json = plain;
  std::size_t at = json.find(key);
  if (at == std::string::npos || name.find_first_of("\"\\") != std::string::npos)
    throw Error(ErrorCode::Usage, "unknown " + member + " '" + name + "'");
  at = json.find('"', at + key.size());
  const std::size_t end = json.find('"', at + 1);
  json.replace(at + 1, end - at - 1, name);
  try {
    return spec_from_json(json).k.*field;
  } catch (const Error& error) {
    throw Error(ErrorCode::Usage, error.message(), member);
  }
}

}  // namespace

void bind_tables(nb::module_& m) {
  m.def(
      "spec_json", [](const std::string& name) { return spec_to_json(spec_from_name(name)); }, nb::arg("name"));
  m.def(
      "spec_name", [](const std::string& json) { return spec_name(spec_from_json(json)); }, nb::arg("json"));
  m.def(
      "codebook",
      [](int bits, int dim, const std::string& kind) {
        const Codebook book = make_codebook(kind_from_json("codebook", kind, &SideSpec::codebook), bits, dim);
        const CodebookStats stats = codebook_stats(book);
        return nb::make_tuple(copy_to_numpy(book.centroids, {static_cast<std::int64_t>(book.centroids.size())}),
                              copy_to_numpy(book.boundaries, {static_cast<std::int64_t>(book.boundaries.size())}), stats.mse,
                              stats.entropy_bits, stats.paper_bound, stats.shannon_bound);
      },
      nb::arg("bits"), nb::arg("dim"), nb::arg("kind"));
  m.def(
      "rotation",
      [](int dim, const std::string& kind, std::uint64_t seed) {
        const Rotation rotation = make_rotation(kind_from_json("rotation", kind, &SideSpec::rotation), dim, seed);
        return copy_to_numpy(rotation.matrix, {dim, dim});
      },
      nb::arg("dim"), nb::arg("kind"), nb::arg("seed"));
}

}  // namespace tq4::python
