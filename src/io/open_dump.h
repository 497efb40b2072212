// The three readers behind tq4::open_dump, one function each.
#pragma once

#include <memory>
#include <string>

#include "tq4/dump.h"

namespace tq4::io {

std::unique_ptr<Dump> open_hdf5_dump(const std::string& path, const DumpOptions& options);
std::unique_ptr<Dump> open_safetensors_dump(const std::string& path, const DumpOptions& options);
std::unique_ptr<Dump> open_npy_dump(const std::string& path, const DumpOptions& options);  ///< .npy and .npz

}  // namespace tq4::io
