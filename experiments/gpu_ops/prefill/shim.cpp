// libtq4_prefill.so: prefill of tq4 for bench.py, which loads it with ctypes and gives it addresses of torch tensors. Calls return 0 or 1 (error text
// in tq4_error()); all run on the stream given.
#include <string>

#include "tq4/prefill.h"
#include "tq4/spec.h"

using namespace tq4;
using namespace tq4::gpu;

namespace {
std::string error_text;

template <class F>
int guarded(F&& f) {
  try {
    f();
    return 0;
  } catch (const std::exception& e) {
    error_text = e.what();
    return 1;
  }
}
}  // namespace

extern "C" {

const char* tq4_error() { return error_text.c_str(); }

void* tq4_codec(const char* spec, int head_dim, int num_kv_heads) {
  DeviceCodec* codec = nullptr;
  guarded([&] { codec = new DeviceCodec(spec_from_name(spec), head_dim, num_kv_heads); });
  return codec;
}
int tq4_code_bytes(void* codec, int side) {
  return static_cast<int>(static_cast<DeviceCodec*>(codec)->host(static_cast<Side>(side)).code_bytes());
}

/// x fp16 [n, num_kv_heads, D] to codes and fp32 scales.
int tq4_encode(void* codec, int side, const void* x, std::int64_t n, void* codes, float* scale, void* stream) {
  return guarded([&] {
    const auto& c = *static_cast<DeviceCodec*>(codec);
    EncodeParams p;
    p.x = x;
    p.n = n;
    p.heads = c.num_kv_heads();
    p.out = {static_cast<std::uint8_t*>(codes), scale, nullptr, nullptr, nullptr};
    encode(c, static_cast<Side>(side), p, stream);
  });
}
/// Codes and scales back to fp16 [n, num_kv_heads, D] in the original space.
int tq4_dequant(void* codec, int side, const void* codes, const float* scale, std::int64_t n, void* out, void* stream) {
  return guarded([&] {
    const auto& c = *static_cast<DeviceCodec*>(codec);
    DequantParams p;
    p.in = {static_cast<const std::uint8_t*>(codes), scale, nullptr, nullptr, nullptr};
    p.n = n;
    p.heads = c.num_kv_heads();
    p.out = out;
    p.rotated = false;
    dequant(c, static_cast<Side>(side), p, stream);
  });
}

struct PrefillCall {
  const void *q, *k_codes, *v_codes;  ///< q, out [sum of q_len, num_q_heads, D] fp16
  const float *k_scale, *v_scale;
  const std::int32_t *cu_q, *cu_k;
  void *out, *workspace;
  float* lse;
  std::int64_t workspace_bytes, tokens;
  int num_seqs, q_len, num_q_heads, causal, general, int8;
};
namespace {
PrefillParams params(const PrefillCall& c) {
  PrefillParams p;
  p.q = c.q;
  p.out = c.out;
  p.lse = c.lse;
  p.num_seqs = c.num_seqs;
  p.cu_q = c.cu_q;
  p.max_q_len = c.q_len;
  p.max_kv_len = c.tokens;
  p.num_q_heads = c.num_q_heads;
  p.k_planes = {static_cast<const std::uint8_t*>(c.k_codes), c.k_scale, nullptr, nullptr, nullptr};
  p.v_planes = {static_cast<const std::uint8_t*>(c.v_codes), c.v_scale, nullptr, nullptr, nullptr};
  p.cu_k = c.cu_k;
  p.causal = c.causal != 0;
  p.general_path = c.general != 0;
  p.qk_int8 = c.int8 != 0;
  p.workspace = c.workspace;
  p.workspace_bytes = static_cast<std::size_t>(c.workspace_bytes);
  return p;
}
}  // namespace
std::int64_t tq4_prefill_workspace(void* codec, const PrefillCall* call) {
  std::int64_t bytes = -1;
  guarded([&] { bytes = static_cast<std::int64_t>(prefill_workspace_bytes(*static_cast<DeviceCodec*>(codec), params(*call))); });
  return bytes;
}
int tq4_prefill(void* codec, const PrefillCall* call, void* stream) {
  return guarded([&] { prefill(*static_cast<DeviceCodec*>(codec), params(*call), stream); });
}

}  // extern "C"
