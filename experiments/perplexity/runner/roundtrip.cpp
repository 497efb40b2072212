// The project's codecs behind a C interface, so that run.py can put a language model's K and V through them (ctypes). A handle is one
// compressor: a codec of tq4 with or without calibration, or a baseline of the quality report. Built with every dependency linked statically.
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <exception>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "tq4/calibration.h"
#include "tq4/compressor.h"
#include "tq4/container.h"
#include "tq4/error.h"
#include "tq4/spec.h"

namespace {

struct Handle {
  std::unique_ptr<tq4::Calibration> calibration;
  std::unique_ptr<tq4::Compressor> compressor;
};

void tell(const char* what, char* message, int size) {
  if (size <= 0) return;
  std::strncpy(message, what, static_cast<std::size_t>(size) - 1);
  message[size - 1] = 0;
}

}  // namespace

extern "C" {

/// Names of all codecs of `tq4 eval --codec all`, one a line.
__attribute__((visibility("default"))) const char* tq4_roundtrip_names() {
  static const std::string names = [] {
    std::string lines;
    for (const std::string& name : tq4::codec_names()) lines += name + "\n";
    return lines;
  }();
  return names.c_str();
}

/// A codec or baseline by name. calibration: path of a .tq4cal file or null (then `spec` of the file wins over the name's seed and codebook).
/// seed: rotation seed, scale_rule: 0 least squares, 1 norm, 2 unbiased, -1 as the name says. Null and a message on failure.
__attribute__((visibility("default"))) void* tq4_roundtrip_open(const char* name, const char* calibration, std::uint64_t seed,
                                                                int scale_rule, char* message, int size) {
  try {
    auto handle = std::make_unique<Handle>();
    tq4::CodecSpec spec;
    bool codec = true;
    try {
      spec = tq4::spec_from_name(name);
    } catch (const tq4::Error&) {
      codec = false;
    }
    if (!codec) {
      handle->compressor = tq4::make_compressor(name);
      return handle.release();
    }
    for (tq4::SideSpec* side : {&spec.k, &spec.v}) {
      side->seed = seed;
      if (scale_rule >= 0) side->scale_rule = static_cast<tq4::ScaleRule>(scale_rule);
    }
    if (calibration != nullptr && calibration[0] != 0)
      handle->calibration = std::make_unique<tq4::Calibration>(tq4::read_calibration(calibration));
    handle->compressor = tq4::codec_compressor(name, spec, handle->calibration.get());
    return handle.release();
  } catch (const std::exception& error) {
    tell(error.what(), message, size);
    return nullptr;
  }
}

__attribute__((visibility("default"))) void tq4_roundtrip_close(void* handle) { delete static_cast<Handle*>(handle); }

/// Bits a value of both sides together, everything a sequence of `tokens` tokens stores counted (calibrated matrices are part of the model).
__attribute__((visibility("default"))) double tq4_roundtrip_bits(void* handle, std::int64_t tokens, int dim) {
  double bits = 0;
  for (const tq4::Side side : {tq4::Side::K, tq4::Side::V}) {
    tq4::HeadVectors shape;
    shape.side = side;
    shape.tokens = tokens;
    shape.dim = dim;
    bits += static_cast<Handle*>(handle)->compressor->footprint(shape).total();
  }
  return bits / (2.0 * static_cast<double>(tokens) * dim);
}

/// What a query sees exactly of one side: {sinks, window, block} of tq4::ExactTokens.
__attribute__((visibility("default"))) void tq4_roundtrip_exact(void* handle, int side, int* out) {
  const tq4::ExactTokens exact = static_cast<Handle*>(handle)->compressor->exact(side == 0 ? tq4::Side::K : tq4::Side::V);
  out[0] = exact.sinks, out[1] = exact.window, out[2] = exact.block;
}

/// x and out: [sequences, heads, tokens, dim] fp32 of one layer; side 0 = K, 1 = V. Every sequence begins at position 0.
__attribute__((visibility("default"))) int tq4_roundtrip(void* handle, int layer, int side, int sequences, int heads, std::int64_t tokens,
                                                         int dim, const float* x, float* out, int threads, char* message, int size) {
  std::atomic<int> next{0};
  std::atomic<bool> failed{false};
  const auto work = [&] {
    for (int task = next++; task < sequences * heads && !failed; task = next++) {
      try {
        tq4::HeadVectors vectors;
        vectors.side = side == 0 ? tq4::Side::K : tq4::Side::V;
        vectors.layer = layer;
        vectors.head = task % heads;
        vectors.tokens = tokens;
        vectors.dim = dim;
        const std::int64_t first = task * tokens * dim;
        vectors.x = x + first;
        static_cast<Handle*>(handle)->compressor->reconstruct(vectors, out + first);
      } catch (const std::exception& error) {
        if (!failed.exchange(true)) tell(error.what(), message, size);
      }
    }
  };
  std::vector<std::thread> pool;
  for (int t = 1; t < threads; ++t) pool.emplace_back(work);
  work();
  for (std::thread& thread : pool) thread.join();
  return failed ? 1 : 0;
}

}  // extern "C"
