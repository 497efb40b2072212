// See build_info.h. Constants come from CMake (build_constants.h, written at each build so that the commit is true); SIMD target, host and GPU
// are asked at run time.
#include "build_info.h"

#include <fmt/format.h>
#include <sched.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <fstream>

#include "build_constants.h"
#include "common_args.h"
#include "cpu/kernels.h"
#include "tq4/gpu.h"

namespace tq4::cli {

BuildInfo build_info() {
  return {TQ4_VERSION_TEXT,
          TQ4_COMMIT,
          TQ4_COMPILER,
          TQ4_BUILD_TYPE,
          TQ4_SANITIZE_TEXT,
          TQ4_CUDA_TEXT,
          TQ4_CUDA_ARCHITECTURES_TEXT,
          TQ4_HDF5_TEXT,
          cpu::simd_kernels().name};
}

std::string version_text() {
  const BuildInfo b = build_info();
  std::string out = fmt::format("tq4 {} ({})\n", b.version, b.commit);
  out += fmt::format("compiler  {}, {}{}{}\n", b.compiler, b.build_type, b.sanitize.empty() ? "" : ", sanitizers ", b.sanitize);
  out += fmt::format("CUDA      {}{}{}\n", b.cuda, b.cuda_architectures.empty() ? "" : ", architectures ", b.cuda_architectures);
  out += fmt::format("SIMD      {}\n", b.simd);
  out += fmt::format("HDF5      {}\n", b.hdf5);
  return out;
}

nlohmann::json build_json() {
  const BuildInfo b = build_info();
  return {{"version", b.version},
          {"commit", b.commit},
          {"compiler", b.compiler},
          {"build_type", b.build_type},
          {"sanitize", b.sanitize},
          {"cuda", b.cuda},
          {"cuda_architectures", b.cuda_architectures},
          {"simd", b.simd},
          {"hdf5", b.hdf5}};
}

nlohmann::json host_json() {
  std::string cpu = "unknown", line;
  for (std::ifstream info("/proc/cpuinfo"); std::getline(info, line);) {
    if (line.rfind("model name", 0) == 0 && line.find(": ") != std::string::npos) {
      cpu = line.substr(line.find(": ") + 2);
      break;
    }
  }
  utsname system{};
  ::uname(&system);
  const auto memory = static_cast<std::uint64_t>(::sysconf(_SC_PHYS_PAGES)) * static_cast<std::uint64_t>(::sysconf(_SC_PAGESIZE));
  return {{"cpu", cpu},
          {"cores", ExecOptions{}.thread_count()},
          {"memory_bytes", memory},
          {"kernel", fmt::format("{} {}", system.sysname, system.release)}};
}

nlohmann::json gpu_json() {
  if (!gpu::compiled() || gpu::device_count() == 0) return nullptr;
  const gpu::DeviceInfo device = gpu::device_info(0);
  return {{"name", device.name},
          {"sm_count", device.sm_count},
          {"compute_capability", fmt::format("{}.{}", device.compute_major, device.compute_minor)},
          {"l2_bytes", device.l2_bytes},
          {"memory_bytes", device.memory_bytes}};
}

}  // namespace tq4::cli
