// Allocates, exports and imports planes; the only place that knows which planes a codec has and at which width they are stored.
#include "planes.h"

#include <cstring>

#include "tensor.h"

namespace tq4::python {
namespace {

template <class T>
std::unique_ptr<T[]> room(bool present, std::int64_t count) {
  return present ? std::unique_ptr<T[]>(new T[static_cast<std::size_t>(count)]) : nullptr;
}

/// All of a tensor whose rows are dense, side by side.
const void* rows_of(const Tensor& plane, std::vector<std::uint8_t>& dense) {
  return plane.shape.empty() ? plane.data : gather_rows(plane, 0, plane.size() / plane.shape.back(), dense);
}

nb::object real_plane(const Codec& codec, std::unique_ptr<float[]> values, const std::vector<std::int64_t>& shape) {
  if (values == nullptr) return nb::none();
  if (codec.spec().scale_dtype == ScaleDType::F32) return to_numpy(std::move(values), shape);
  const std::int64_t n = elements(shape);
  auto halves = room<std::uint16_t>(true, n);
  from_float(values.get(), static_cast<std::size_t>(n), DType::F16, halves.get());
  return to_numpy_half(std::move(halves), shape);
}

std::unique_ptr<float[]> real_plane(nb::handle object, bool present, const std::vector<std::int64_t>& shape, const char* name) {
  if (!present) return nullptr;
  const Tensor plane = tensor_on(object, name, {DType::F16, DType::F32}, false, 0);
  need_shape(plane.shape, shape, name);
  need_rows(plane, name);
  auto values = room<float>(true, plane.size());
  std::vector<std::uint8_t> dense;
  if (plane.size() > 0) to_float(rows_of(plane, dense), plane.dtype, static_cast<std::size_t>(plane.size()), values.get());
  return values;
}

std::unique_ptr<std::uint8_t[]> byte_plane(const Tensor& plane, const char* name) {
  need_rows(plane, name);
  auto bytes = room<std::uint8_t>(true, plane.size());
  std::vector<std::uint8_t> dense;
  if (plane.size() > 0) std::memcpy(bytes.get(), rows_of(plane, dense), static_cast<std::size_t>(plane.size()));
  return bytes;
}

}  // namespace

Planes::Planes(const Codec& codec, std::int64_t n)
    : codes(room<std::uint8_t>(true, n * static_cast<std::int64_t>(codec.code_bytes()))),
      signs(room<std::uint8_t>(codec.has_signs(), n * codec.head_dim() / 8)),
      scale(room<float>(codec.has_scale(), n)),
      zero(room<float>(codec.has_zero(), n)),
      residual_norm(room<float>(codec.has_signs(), n)) {}

EncodedOut Planes::out(const Codec& codec, std::int64_t first) const {
  const auto at = [first](const auto& plane, std::int64_t row) { return plane == nullptr ? nullptr : plane.get() + first * row; };
  return {at(codes, static_cast<std::int64_t>(codec.code_bytes())), at(scale, 1), at(zero, 1), at(signs, codec.head_dim() / 8),
          at(residual_norm, 1)};
}

EncodedIn Planes::in(const Codec& codec, std::int64_t first) const {
  const EncodedOut planes = out(codec, first);
  return {planes.codes, planes.scale, planes.zero, planes.signs, planes.residual_norm};
}

nb::tuple planes_to_python(const Codec& codec, Planes planes, const std::vector<std::int64_t>& leading) {
  std::vector<std::int64_t> rows = leading;
  rows.push_back(static_cast<std::int64_t>(codec.code_bytes()));
  nb::object codes = to_numpy(std::move(planes.codes), rows);
  rows.back() = codec.head_dim() / 8;
  nb::object signs = planes.signs == nullptr ? nb::none() : to_numpy(std::move(planes.signs), rows);
  return nb::make_tuple(std::move(codes), real_plane(codec, std::move(planes.scale), leading),
                        real_plane(codec, std::move(planes.zero), leading), std::move(signs),
                        real_plane(codec, std::move(planes.residual_norm), leading));
}

Planes planes_from_python(const Codec& codec, nb::handle object, std::vector<std::int64_t>& leading) {
  nb::tuple parts;
  if (!nb::try_cast(object, parts, false) || parts.size() != 5) throw Refusal{"UsageError", "encoded vectors are five planes"};
  const Tensor codes = tensor_on(parts[0], "codes", {DType::U8}, false, 0);
  if (codes.shape.empty() || codes.shape.back() != static_cast<std::int64_t>(codec.code_bytes())) {
    throw Refusal{"ShapeError", "codes of shape " + shape_text(codes.shape) + " must end in an axis of " +
                                    std::to_string(codec.code_bytes()) + " bytes a vector for this codec"};
  }
  leading.assign(codes.shape.begin(), codes.shape.end() - 1);
  Planes planes(codec, 0);
  planes.codes = byte_plane(codes, "codes");
  planes.scale = real_plane(parts[1], codec.has_scale(), leading, "scale");
  planes.zero = real_plane(parts[2], codec.has_zero(), leading, "zero");
  if (codec.has_signs()) {
    const Tensor signs = tensor_on(parts[3], "signs", {DType::U8}, false, 0);
    std::vector<std::int64_t> rows = leading;
    rows.push_back(codec.head_dim() / 8);
    need_shape(signs.shape, rows, "signs");
    planes.signs = byte_plane(signs, "signs");
  }
  planes.residual_norm = real_plane(parts[4], codec.has_signs(), leading, "residual_norm");
  return planes;
}

}  // namespace tq4::python
