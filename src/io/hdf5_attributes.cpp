// Attributes of an HDF5 object as text, whatever their type: what DumpInfo::attributes keeps and a container carries along.
#include "io/hdf5_attributes.h"

#include <array>
#include <charconv>
#include <cstdint>
#include <memory>

namespace tq4::io {
namespace {

template <class T>
std::string to_text(T value) {
  std::array<char, 40> text{};
  const auto [end, error] = std::to_chars(text.data(), text.data() + text.size(), value);
  return error == std::errc() ? std::string(text.data(), end) : std::string();
}

template <class T>
std::string numbers_text(hid_t attribute, hid_t memory_type, std::size_t count, bool scalar) {
  std::vector<T> values(count);
  if (H5Aread(attribute, memory_type, values.data()) < 0) return {};
  if (scalar) return to_text(values[0]);
  std::string text = "[";
  for (std::size_t i = 0; i < count; ++i) text += (i ? ", " : "") + to_text(values[i]);
  return text + "]";
}

std::string string_text(hid_t attribute, hid_t type) {
  if (H5Tis_variable_str(type) > 0) {
    H5Type memory(H5Tcopy(H5T_C_S1));
    H5Tset_size(memory.get(), H5T_VARIABLE);
    H5Tset_cset(memory.get(), H5Tget_cset(type));
    char* text = nullptr;
    if (H5Aread(attribute, memory.get(), &text) < 0 || text == nullptr) return {};
    const std::unique_ptr<char, herr_t (*)(void*)> owner(text, H5free_memory);
    return text;
  }
  std::string text(H5Tget_size(type), '\0');
  if (text.size() > (1u << 20) || H5Aread(attribute, type, text.data()) < 0) return {};
  return text.substr(0, text.find('\0'));
}

/// Empty for types that have no short text (references, compounds, long arrays).
std::string attribute_text(hid_t attribute) {
  const H5Type type(H5Aget_type(attribute));
  const H5Space space(H5Aget_space(attribute));
  const hssize_t count = H5Sget_simple_extent_npoints(space.get());
  const bool scalar = H5Sget_simple_extent_ndims(space.get()) == 0;
  if (count < 1 || count > 64) return {};
  switch (H5Tget_class(type.get())) {
    case H5T_INTEGER:
      if (H5Tget_sign(type.get()) == H5T_SGN_NONE)
        return numbers_text<std::uint64_t>(attribute, H5T_NATIVE_UINT64, static_cast<std::size_t>(count), scalar);
      return numbers_text<std::int64_t>(attribute, H5T_NATIVE_INT64, static_cast<std::size_t>(count), scalar);
    case H5T_FLOAT: return numbers_text<double>(attribute, H5T_NATIVE_DOUBLE, static_cast<std::size_t>(count), scalar);
    case H5T_STRING: return count == 1 ? string_text(attribute, type.get()) : std::string();
    case H5T_ENUM: {  // h5py's bool: FALSE = 0, TRUE = 1 in one byte
      std::int64_t raw = 0;
      if (count != 1 || H5Tget_size(type.get()) > sizeof raw || H5Aread(attribute, type.get(), &raw) < 0) return {};
      std::array<char, 64> name{};
      if (H5Tenum_nameof(type.get(), &raw, name.data(), name.size()) < 0) return {};
      const std::string text = name.data();
      return text == "TRUE" ? "true" : text == "FALSE" ? "false" : text;
    }
    default: return {};
  }
}

bool parses_as_integer(const std::string& text, std::int64_t& value) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  return error == std::errc() && end == text.data() + text.size();
}

bool parses_as_double(const std::string& text, double& value) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  return error == std::errc() && end == text.data() + text.size();
}

}  // namespace

std::string number_text(double value) { return to_text(value); }

Attributes read_attributes(hid_t object) {
  Attributes attributes;
  const auto visit = [](hid_t where, const char* name, const H5A_info_t*, void* out) -> herr_t {
    const H5Attribute attribute(H5Aopen(where, name, H5P_DEFAULT));
    if (attribute) {
      std::string text = attribute_text(attribute.get());
      if (!text.empty()) static_cast<Attributes*>(out)->insert_or_assign(name, std::move(text));
    }
    return 0;
  };
  hsize_t index = 0;
  H5Aiterate2(object, H5_INDEX_NAME, H5_ITER_NATIVE, &index, visit, &attributes);
  return attributes;
}

bool write_attribute(hid_t object, const std::string& name, const std::string& text) {
  const H5Space scalar(H5Screate(H5S_SCALAR));
  std::int64_t whole = 0;
  double real = 0;
  if (text == "true" || text == "false") {
    const H5Type type(H5Tenum_create(H5T_STD_I8LE));
    const std::int8_t no = 0, yes = 1;
    H5Tenum_insert(type.get(), "FALSE", &no);
    H5Tenum_insert(type.get(), "TRUE", &yes);
    const H5Attribute attribute(H5Acreate2(object, name.c_str(), type.get(), scalar.get(), H5P_DEFAULT, H5P_DEFAULT));
    return attribute && H5Awrite(attribute.get(), type.get(), text == "true" ? &yes : &no) >= 0;
  }
  if (parses_as_integer(text, whole)) {
    const H5Attribute attribute(H5Acreate2(object, name.c_str(), H5T_STD_I64LE, scalar.get(), H5P_DEFAULT, H5P_DEFAULT));
    return attribute && H5Awrite(attribute.get(), H5T_NATIVE_INT64, &whole) >= 0;
  }
  if (parses_as_double(text, real)) {
    const H5Attribute attribute(H5Acreate2(object, name.c_str(), H5T_IEEE_F64LE, scalar.get(), H5P_DEFAULT, H5P_DEFAULT));
    return attribute && H5Awrite(attribute.get(), H5T_NATIVE_DOUBLE, &real) >= 0;
  }
  const H5Type type(H5Tcopy(H5T_C_S1));
  H5Tset_size(type.get(), text.empty() ? 1 : text.size());
  H5Tset_strpad(type.get(), H5T_STR_NULLPAD);
  H5Tset_cset(type.get(), H5T_CSET_UTF8);
  const H5Attribute attribute(H5Acreate2(object, name.c_str(), type.get(), scalar.get(), H5P_DEFAULT, H5P_DEFAULT));
  return attribute && H5Awrite(attribute.get(), type.get(), text.c_str()) >= 0;
}

}  // namespace tq4::io
