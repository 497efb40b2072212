// What this program was built from and for: shown by --version and stored in every JSON result, so that a number can be traced.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

namespace tq4::cli {

struct BuildInfo {
  std::string version;             ///< "0.1.0"
  std::string commit;              ///< short hash, "+dirty" appended when the tree had changes; "unknown" outside git
  std::string compiler;            ///< "GNU 12.2.0"
  std::string build_type;          ///< "Release"
  std::string sanitize;            ///< "" or "address,undefined"
  std::string cuda;                ///< "13.0.48" or "none"
  std::string cuda_architectures;  ///< "80-real;90a-real;90-virtual" or ""
  std::string hdf5;                ///< "1.10.8"
  std::string simd;                ///< SIMD target chosen on this CPU: "AVX2", ...
};
BuildInfo build_info();

/// The lines of `tq4 --version`.
std::string version_text();

nlohmann::json build_json();  ///< BuildInfo as an object
nlohmann::json host_json();   ///< CPU model, cores this process may use, memory in bytes, kernel
nlohmann::json gpu_json();    ///< the first CUDA device, or null

}  // namespace tq4::cli
