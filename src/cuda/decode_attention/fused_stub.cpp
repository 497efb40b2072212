// Stands in for the fused decode kernel where it is not built: every call takes the general path.
#include "cuda/check.h"
#include "cuda/decode_attention/fused.h"

namespace tq4::gpu {

bool fused_supported(const DeviceCodec&, const DecodeParams&, std::string* why) {
  if (why) *why = "the fused kernel is not part of this build";
  return false;
}
std::size_t fused_workspace_bytes(const DeviceCodec&, const DecodeParams&) { return 0; }
void fused_decode(const DeviceCodec&, const DecodeParams&, Stream) { refuse("the fused kernel is not part of this build", "decode"); }

}  // namespace tq4::gpu
