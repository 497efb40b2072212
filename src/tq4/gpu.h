// The CUDA operations, callable with plain device pointers. Every call is stream-ordered: no hidden allocation, no synchronisation; workspace
// comes from the caller and its size from a query function, so that calls can be captured in a CUDA graph and replayed while
// seq_lens, block tables and slot mappings change. A CPU-only build links a facade whose calls throw NoDevice. What is not served throws
// Unsupported by name; nothing falls back silently (decode_path() names the path a call takes).
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "tq4/calibration.h"
#include "tq4/codec.h"
#include "tq4/layout.h"
#include "tq4/spec.h"
#include "tq4/types.h"

namespace tq4::gpu {

using Stream = void*;  ///< cudaStream_t

bool compiled();     ///< whether this build has the CUDA backend
int device_count();  ///< 0 without a driver or a device; never throws
struct DeviceInfo {
  std::string name;
  int sm_count = 0, compute_major = 0, compute_minor = 0;
  std::size_t l2_bytes = 0, memory_bytes = 0, shared_bytes_per_block = 0;
  int driver_version = 0;  ///< newest CUDA that the driver serves, e.g. 13000
};
DeviceInfo device_info(int device);  ///< throws NoDevice

/// Device pointers of one side's tables. Matrices are [D, D] row-major; with per_head they are [num_kv_heads, D, D].
struct SideTables {
  const float* forward = nullptr;             ///< y = forward (x - centre), fp32
  const float* inverse = nullptr;             ///< x = inverse y + centre, fp32
  const std::uint16_t* forward_hi = nullptr;  ///< forward split in two fp16 parts (hi + lo) for tensor cores
  const std::uint16_t* forward_lo = nullptr;
  const std::uint16_t* inverse_hi = nullptr;  ///< inverse likewise
  const std::uint16_t* inverse_lo = nullptr;
  const std::uint16_t* query_hi =
      nullptr;  ///< K only: what queries are multiplied by, inverse^T (= forward for a plain rotation), fp16 hi part
  const std::uint16_t* query_lo = nullptr;
  const float* centre = nullptr;             ///< [num_kv_heads, D] or null
  const float* rope_mu = nullptr;            ///< [num_kv_heads, D] or null
  const float* centroids = nullptr;          ///< [2^bits] scalar codebook (ascending)
  const float* boundaries = nullptr;         ///< [2^bits - 1]
  const float* outlier_centroids = nullptr;  ///< Mixed
  const float* outlier_boundaries = nullptr;
  const float* qjl = nullptr;                 ///< Prod: [D, D]
  const float* qjl_t = nullptr;               ///< Prod: its transpose
  const float* hadamard_signs = nullptr;      ///< HadamardSigned: [D]; null = no signs
  const std::uint32_t* pair_half2 = nullptr;  ///< Mse at 1..4 bits: [4^bits] half2 (low half = even coordinate)
  const float* pair_points = nullptr;         ///< the same in fp32 [4^bits, 2]; non-null only for a true 2-D codebook (encode must search)
  const float* forward_t = nullptr;           ///< forward and inverse transposed, fp32: lanes run over output coordinates
  const float* inverse_t = nullptr;           ///< K: what queries are multiplied by, in fp32
  const float* centre_rotated =
      nullptr;            ///< what inverse turns into centre (forward * centre where they are inverses) [num_kv_heads, D] or null
  bool feedback = false;  ///< codes are made with HeadTransform::feedback: encode and store refuse, decoding is as ever
  const std::uint64_t* rope_turns = nullptr;  ///< [rope_dim / 2] turns a position in units of 2^-64 (wraps); with rope_mu only
  /// Matrices for the tensor cores as src/cuda/tiles/image.h lays them out: fp16, image_parts parts a head (hi, lo; a Hadamard's is +-1 in one
  /// part, products are multiplied with image_scale). Null where there is none for this D, or the transform is the identity.
  const std::uint16_t* forward_image = nullptr;
  const std::uint16_t* inverse_image = nullptr;
  const std::uint16_t* forward_image_in_order = nullptr;  ///< forward_image with its columns in their own order, D <= 128
  int image_parts = 0;
  float image_scale = 1;
  /// Scalar codebooks of up to 4 bits: 32 equal cells of z with at most one boundary each (src/cuda/encode/lanes.cuh), then the
  /// centroids of codes 15 - i % 16 and i, i = 0 .. 31
  const float* cells = nullptr;
  float cell_scale = 0, cell_offset = 0;
  const std::uint32_t* code_cells =
      nullptr;  ///< [256] 128 cells for even, then for odd coordinates (src/cuda/encode/code_table.cuh), or null
  bool per_head = false;
  bool hadamard = false;     ///< forward is an (un)signed Hadamard of one power-of-two block: butterflies serve
  bool butterflies = false;  ///< forward is a Hadamard of any D: blocks are the powers of two D is the sum of, largest first
  bool identity = false;     ///< forward is the identity: y = x - centre
};

/// Owns a codec's tables on the current device. Immutable after construction; copies are made with cudaMemcpy in the constructor.
class DeviceCodec {
 public:
  DeviceCodec(const CodecSpec& spec, int head_dim, int num_kv_heads, const LayerCalibration* calibration = nullptr);
  /// With the tables of two codecs built from tables of the caller's own (Codec's second constructor); k and v are of spec.k and spec.v.
  DeviceCodec(const CodecSpec& spec, int num_kv_heads, Codec k, Codec v);
  ~DeviceCodec();
  DeviceCodec(DeviceCodec&&) noexcept;
  DeviceCodec& operator=(DeviceCodec&&) noexcept;
  const CodecSpec& spec() const;
  int head_dim() const;
  int num_kv_heads() const;
  const SideTables& k() const;
  const SideTables& v() const;
  const Codec& host(Side side) const;  ///< the CPU codec with the same tables
  double rope_theta() const;
  int rope_dim() const;
  const DeviceInfo& device() const;  ///< the device the tables are on

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

/// A paged cache on the device, as the layout describes it.
struct PagedCache {
  PageLayout layout;
  std::uint8_t* data = nullptr;
  std::int64_t num_blocks = 0;
};

// ---- encode / store ---------------------------------------------------------------------------------------------------------------

struct EncodeParams {
  const void* x = nullptr;  ///< [n, heads, D] of x_dtype; strides in elements
  DType x_dtype = DType::F16;
  std::int64_t n = 0;
  int heads = 1;                                   ///< head h uses per-head tables h (when the codec has them)
  std::int64_t token_stride = 0, head_stride = 0;  ///< both 0: dense
  const std::int64_t* positions = nullptr;         ///< [n] token positions, for rope_mu only
  EncodedOut out;                                  ///< device planes [n, heads]
  bool single_fp16_rotation = false;               ///< one fp16 product instead of the split: faster, some codes flip near boundaries
  bool sequential = false;                         ///< sum as the CPU does, one product after the other: slower, its bytes
};
/// The bytes Codec::encode gives with the same transform, but for coordinates within 1e-5 of a boundary (of a unit vector) and scales within 1e-6
/// of a tie between two fp16 numbers: rotations go over the tensor cores where docs/gpu.md says so. Equal where `sequential` is set and
/// rope_mu not used. NaN or infinity in x gives that vector a scale that is not finite (a kernel cannot throw).
void encode(const DeviceCodec& codec, Side side, const EncodeParams& params, Stream stream);

struct StoreParams {
  const void* k = nullptr;  ///< [n, num_kv_heads, D]
  const void* v = nullptr;
  DType dtype = DType::F16;
  std::int64_t n = 0;
  std::int64_t k_token_stride = 0, k_head_stride = 0, v_token_stride = 0, v_head_stride = 0;  ///< elements; a pair of zeros: dense
  const std::int64_t* slot_mapping = nullptr;                                                 ///< [n]; negative = skip
  const std::int64_t* positions = nullptr;                                                    ///< [n], for rope_mu only
  PagedCache cache;
  bool sequential = false;  ///< as EncodeParams::sequential
};
/// Encode and scatter K and V in one launch.
void store(const DeviceCodec& codec, const StoreParams& params, Stream stream);

// ---- dequant ----------------------------------------------------------------------------------------------------------------------

struct DequantParams {
  EncodedIn in;  ///< device planes [n, heads]
  std::int64_t n = 0;
  int heads = 1;
  void* out = nullptr;  ///< [n, heads, D] of out_dtype, dense
  DType out_dtype = DType::F16;
  bool rotated = true;  ///< leave in rotated space
  const std::int64_t* positions = nullptr;
  bool high_nibble_first = false;  ///< codes as turboquant-vllm packs them
  bool sequential = false;         ///< as EncodeParams::sequential
};
/// Rows as Codec::decode and decode_rotated give them, rounded to out_dtype. Original space goes over the tensor cores where docs/gpu.md says
/// so: within 5e-4 of the row's norm for fp16 and bf16 before their own rounding, 1e-6 for fp32. Equal where `sequential` is set.
void dequant(const DeviceCodec& codec, Side side, const DequantParams& params, Stream stream);

struct DequantPagesParams {
  PagedCache cache;
  const std::int32_t* block_table = nullptr;  ///< [num_seqs, block_table_stride]
  std::int64_t block_table_stride = 0;
  const std::int32_t* seq_lens = nullptr;  ///< [num_seqs]
  int num_seqs = 0;
  std::int64_t max_seq_len = 0;  ///< rows of k_out and v_out a sequence
  void* k_out = nullptr;         ///< [num_seqs, num_kv_heads, max_seq_len, D]
  void* v_out = nullptr;
  DType out_dtype = DType::F16;
  bool rotated = true;
  bool sequential = false;  ///< as EncodeParams::sequential
};
void dequant_pages(const DeviceCodec& codec, const DequantPagesParams& params, Stream stream);

// ---- decode attention -------------------------------------------------------------------------------------------------------------

/// Tokens attended exactly, in fp16, beside the compressed ones: the first `sinks` and the last `window` of each
/// sequence. Their slots in the pages are not read. Position p of the window lies at ring index p % window.
struct ExactPart {
  int sinks = 0, window = 0;
  const std::uint16_t* sink_k = nullptr;  ///< [num_seqs, num_kv_heads, sinks, D]
  const std::uint16_t* sink_v = nullptr;
  const std::uint16_t* window_k = nullptr;  ///< [num_seqs, num_kv_heads, window, D]
  const std::uint16_t* window_v = nullptr;
  /// Whether the buffers hold y = forward (x - centre), what the codec would quantize, instead of x. The fused kernel wants it so: exact and
  /// compressed tokens then share queries, logits and accumulators, and a token that leaves the window is quantized without another rotation.
  bool rotated = false;
};

struct DecodeParams {
  const void* q = nullptr;  ///< [num_seqs * q_len, num_q_heads, D] of q_dtype (F16, BF16), dense
  DType q_dtype = DType::F16;
  void* out = nullptr;   ///< like q
  float* lse = nullptr;  ///< [num_seqs * q_len, num_q_heads], natural log; may be null
  int num_seqs = 0;
  int q_len = 1;  ///< 1..16 tokens a sequence: the last ones of seq_len, causal among themselves
  int num_q_heads = 0;
  PagedCache cache;
  const std::int32_t* block_table = nullptr;  ///< [num_seqs, block_table_stride]
  std::int64_t block_table_stride = 0;
  const std::int32_t* seq_lens = nullptr;  ///< [num_seqs], the new tokens included; 0 gives out = 0, lse = -inf
  std::int64_t max_seq_len = 0;            ///< upper bound of seq_lens over the life of a captured graph: fixes the split
  float sm_scale = 0;                      ///< 0 = 1 / sqrt(D)
  int window = 0;                          ///< sliding window; 0 = none
  float soft_cap = 0;
  const float* alibi_slopes = nullptr;  ///< [num_q_heads]
  const float* sink_logits = nullptr;   ///< [num_q_heads]
  bool q_rotated = false;               ///< q is already multiplied by the K transform
  bool out_rotated = false;             ///< leave the output in V's rotated space (no inverse, no centre)
  ExactPart exact;
  bool general_path = false;  ///< do not take the fused kernel where it would serve
  int splits = 0;             ///< general path: parts that the context is cut into, clamped to what it can have; 0 = by rule (tq4/tune.h)
  /// Zeroed once by the caller when allocated; the fused and the slots kernel leave it as they need it, the general path does not: zero it again before
  /// one of them gets a workspace that another path has used, or give each its own.
  void* workspace = nullptr;
  std::size_t workspace_bytes = 0;
  /// -1: the call reads nothing before the kernels ahead of it in the stream have ended. n >= 0, a promise: of what the call reads, the kernel just
  /// ahead writes only q, exact tokens and each sequence's last n tokens in the pages, not seq_lens or block_table. The fused and the slots kernel then
  /// begin while that kernel ends (programmatic dependent launch). In a layer of an engine that kernel is store(), and n its tokens a sequence. A kernel of
  /// the caller's there must not let its dependents begin (griddepcontrol.launch_dependents) before its own wait, or what is ahead of it still runs.
  int fresh_tokens = -1;
};
/// Depends on shapes and max_seq_len only.
std::size_t decode_workspace_bytes(const DeviceCodec& codec, const DecodeParams& params);
/// The path a call takes: "fused-sm90" (native pages), "slots-sm90" (vLLM's), "general"; throws Unsupported with the reason when none does.
std::string decode_path(const DeviceCodec& codec, const DecodeParams& params);
void decode(const DeviceCodec& codec, const DecodeParams& params, Stream stream);

}  // namespace tq4::gpu
