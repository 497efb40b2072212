// The GPU interface of a CPU-only build: every call says that there is no device, so that programs link and explain themselves.
#include "tq4/device_rows.h"
#include "tq4/error.h"
#include "tq4/gpu.h"
#include "tq4/prefill.h"
#include "tq4/profile.h"
#include "tq4/tune.h"

namespace tq4::gpu {
namespace {

[[noreturn]] void refuse() {
  throw Error(ErrorCode::NoDevice, "this build has no CUDA backend; configure with -DTQ4_CUDA=ON and a CUDA 13 toolkit");
}

}  // namespace

bool compiled() { return false; }
int device_count() { return 0; }
DeviceInfo device_info(int) { refuse(); }

struct DeviceCodec::Impl {};
DeviceCodec::DeviceCodec(const CodecSpec&, int, int, const LayerCalibration*) { refuse(); }
DeviceCodec::DeviceCodec(const CodecSpec&, int, Codec, Codec) { refuse(); }
DeviceCodec::~DeviceCodec() = default;
DeviceCodec::DeviceCodec(DeviceCodec&&) noexcept = default;
DeviceCodec& DeviceCodec::operator=(DeviceCodec&&) noexcept = default;
const CodecSpec& DeviceCodec::spec() const { refuse(); }
int DeviceCodec::head_dim() const { refuse(); }
int DeviceCodec::num_kv_heads() const { refuse(); }
const SideTables& DeviceCodec::k() const { refuse(); }
const SideTables& DeviceCodec::v() const { refuse(); }
const Codec& DeviceCodec::host(Side) const { refuse(); }
double DeviceCodec::rope_theta() const { refuse(); }
int DeviceCodec::rope_dim() const { refuse(); }
const DeviceInfo& DeviceCodec::device() const { refuse(); }

struct DeviceRows::Impl {};
DeviceRows::DeviceRows(const CodecSpec&, int, const LayerCalibration*, int) { refuse(); }
DeviceRows::DeviceRows(const CodecSpec&, const Codec&, const Codec&, int) { refuse(); }
DeviceRows::~DeviceRows() = default;
const Codec& DeviceRows::host(Side) const { refuse(); }
void DeviceRows::encode(Side, int, const void*, DType, std::int64_t, std::int64_t, const EncodedOut&) const { refuse(); }
void DeviceRows::decode(Side, int, const EncodedIn&, std::int64_t, std::int64_t, float*) const { refuse(); }

void encode(const DeviceCodec&, Side, const EncodeParams&, Stream) { refuse(); }
void store(const DeviceCodec&, const StoreParams&, Stream) { refuse(); }
void dequant(const DeviceCodec&, Side, const DequantParams&, Stream) { refuse(); }
void dequant_pages(const DeviceCodec&, const DequantPagesParams&, Stream) { refuse(); }
std::size_t decode_workspace_bytes(const DeviceCodec&, const DecodeParams&) { refuse(); }
std::string decode_path(const DeviceCodec&, const DecodeParams&) { refuse(); }
void decode(const DeviceCodec&, const DecodeParams&, Stream) { refuse(); }

std::size_t prefill_workspace_bytes(const DeviceCodec&, const PrefillParams&) { refuse(); }
std::string prefill_path(const DeviceCodec&, const PrefillParams&) { refuse(); }
void prefill(const DeviceCodec&, const PrefillParams&, Stream) { refuse(); }
std::size_t layer_step_workspace_bytes(const DeviceCodec&, const LayerStepParams&) { refuse(); }
std::string layer_step_path(const DeviceCodec&, const LayerStepParams&) { refuse(); }
void update_and_attend(const DeviceCodec&, const LayerStepParams&, Stream) { refuse(); }

ProfileResult profile(const ProfileShape&, const ProfileOptions&) { refuse(); }
TuneResult tune(const ProfileShape&, const ProfileOptions&) { refuse(); }
double read_bandwidth() { refuse(); }
double launch_seconds() { refuse(); }

}  // namespace tq4::gpu
