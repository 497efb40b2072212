// Attributes of HDF5 objects to and from text.
#pragma once

#include <string>
#include <vector>

#include "io/dump_schema.h"
#include "io/hdf5_handle.h"

namespace tq4::io {

/// Scalars, short arrays, strings and booleans; others are left out. Call inside an Hdf5Scope.
Attributes read_attributes(hid_t object);

/// Writes `text` as the type it reads as: true/false, integer, floating point, else a UTF-8 string. False on failure.
bool write_attribute(hid_t object, const std::string& name, const std::string& text);

/// Shortest text that reads back as the same double.
std::string number_text(double value);

}  // namespace tq4::io
