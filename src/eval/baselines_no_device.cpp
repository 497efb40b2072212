// The CPU-only build's answer to `tq4 eval --device cuda`.
#include "tq4/compressor.h"
#include "tq4/error.h"

namespace tq4 {

std::unique_ptr<Compressor> device_codec_compressor(std::string name, const CodecSpec&, const Calibration*, int) {
  throw Error(ErrorCode::NoDevice, "this build of tq4 has no CUDA backend; use --device cpu", name);
}

}  // namespace tq4
