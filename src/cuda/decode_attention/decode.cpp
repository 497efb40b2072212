// Decode attention's entry: the fused kernel (native pages) or the slots kernel (vLLM's) where they serve a call, the general path everywhere else. decode_path() says which.
#include <algorithm>
#include <cstdint>
#include <limits>

#include "cuda/check.h"
#include "cuda/decode_attention/fused.h"
#include "cuda/decode_attention/general.h"
#include "cuda/decode_attention/slots.h"
#include "tq4/gpu.h"

namespace tq4::gpu {

namespace {

bool takes_fused(const DeviceCodec& codec, const DecodeParams& params) {
  return !params.general_path && fused_supported(codec, params, nullptr);
}
bool takes_slots(const DeviceCodec& codec, const DecodeParams& params) {
  return !params.general_path && slots_supported(codec, params, nullptr);
}

}  // namespace

std::size_t decode_workspace_bytes(const DeviceCodec& codec, const DecodeParams& params) {
  const std::size_t general = general_plan(codec, params).bytes;
  if (takes_slots(codec, params)) return std::max(general, slots_workspace_bytes(codec, params));
  return takes_fused(codec, params) ? std::max(general, fused_workspace_bytes(codec, params)) : general;
}

std::string decode_path(const DeviceCodec& codec, const DecodeParams& params) {
  cache_view(codec, params.cache, "decode");  // whichever path: the cache must be this codec's
  if (takes_fused(codec, params)) return "fused-sm90";
  if (takes_slots(codec, params)) return "slots-sm90";
  general_check(codec, params);
  return "general";
}

void decode(const DeviceCodec& codec, const DecodeParams& call, Stream stream) {
  cache_view(codec, call.cache, "decode");
  require(call.window >= 0, "window and soft_cap are not negative", "decode");
  DecodeParams params = call;
  // Kernels take it from positions, which begin at -q_len where there are fewer tokens than queries: the difference is an int.
  params.window = std::min(call.window, std::numeric_limits<int>::max() - 32);
  if (takes_fused(codec, params)) {
    fused_decode(codec, params, stream);
  } else if (takes_slots(codec, params)) {
    slots_decode(codec, params, stream);
  } else {
    general_decode(codec, params, stream);
  }
}

}  // namespace tq4::gpu
