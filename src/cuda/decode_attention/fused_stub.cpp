// Stands in for the fused and the slots decode kernel where they are not built: every call takes the general path.
#include "cuda/check.h"
#include "cuda/decode_attention/fused.h"
#include "cuda/decode_attention/slots.h"

namespace tq4::gpu {

bool fused_supported(const DeviceCodec&, const DecodeParams&, std::string* why) {
  if (why) *why = "the fused kernel is not part of this build";
  return false;
}
std::size_t fused_workspace_bytes(const DeviceCodec&, const DecodeParams&) { return 0; }
void fused_decode(const DeviceCodec&, const DecodeParams&, Stream) { refuse("the fused kernel is not part of this build", "decode"); }

bool slots_supported(const DeviceCodec&, const DecodeParams&, std::string* why) {
  if (why) *why = "the slots kernel is not part of this build";
  return false;
}
std::size_t slots_kept_bytes(const DeviceCodec&) { return 0; }
std::size_t slots_workspace_bytes(const DeviceCodec&, const DecodeParams&) { return 0; }
void slots_decode(const DeviceCodec&, const DecodeParams&, Stream) { refuse("the slots kernel is not part of this build", "decode"); }

}  // namespace tq4::gpu
