// Timing of the GPU operations the way they are used: cold second-level cache (a cycle through many caches, as the layers of a model are), one
// CUDA graph, permuted pages, random or given data stored by our own store. `tq4 profile` prints what these functions return.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "tq4/gpu.h"

namespace tq4::gpu {

enum class ProfileOp : std::uint8_t { Decode, Store, Encode, Dequant, Prefill };

/// One point of a sweep.
struct ProfileShape {
  ProfileOp op = ProfileOp::Decode;
  CodecSpec spec;  ///< sinks and window: tokens attended exactly, in fp16
  LayoutKind layout = LayoutKind::Native;
  bool padded = false;  ///< turboquant-vllm's padded rows
  int num_q_heads = 32, num_kv_heads = 8, head_dim = 128, block_size = 16, q_len = 1;
  int batch = 1;            ///< sequences; Encode, Dequant and Prefill: with ctx tokens each
  std::int64_t ctx = 8192;  ///< tokens a sequence holds (Store: before the step)
  bool ragged = false;      ///< lengths log-uniform in [100, ctx] instead of ctx
  DType dtype = DType::F16;
  bool calibrated = false;    ///< per-head matrices and centres (made up: only the time is of interest)
  bool rope = false;          ///< keys centred before RoPE
  bool general_path = false;  ///< not the fused kernel; Prefill: not Hopper's
  bool rotate = true;         ///< the rotation of query and output is part of the call
  int splits = 0;             ///< DecodeParams::splits
};
/// Keys, values and queries of one layer, fp16, instead of random numbers. A point that needs more tokens takes them again from the first on.
struct ProfileData {
  std::int64_t tokens = 0, q_tokens = 0;
  std::vector<std::uint16_t> k, v;                ///< [tokens, num_kv_heads, head_dim]
  std::vector<std::uint16_t> q;                   ///< [q_tokens, num_q_heads, head_dim]; empty: random queries
  const LayerCalibration* calibration = nullptr;  ///< of that layer; null: none (or made up, ProfileShape::calibrated)
};
struct ProfileOptions {
  int samples = 20;  ///< graph launches of about 3 ms, each one sample
  /// Seconds without work ahead of each sample. Decode of long contexts draws more than the power limit allows for long; what is timed then is a burst, as
  /// between a model's other kernels. 0: sample after sample, and after some 60 ms the clock falls.
  double rest_seconds = 0.005;
  bool baselines = true;  ///< fp16 and fp8 paged decode of the same shape (Decode only)
  bool check = true;      ///< error against the CPU reference on one sequence and kv head (Decode; Prefill: its last query)
  std::uint64_t seed = 1;
  bool cold = true;  ///< cycle through caches that the second-level cache cannot hold; else one cache again and again
  /// Decode: a call begins while the one ahead ends (DecodeParams::fresh_tokens = q_len), as behind the store of an engine's layer.
  bool overlap = true;
  const ProfileData* data = nullptr;  ///< of the shape's heads and head_dim
};
/// Seconds of one call.
struct Timing {
  double median = 0, low = 0, high = 0;  ///< low, high: 10th and 90th percentile
  std::vector<double> samples;
  int calls = 0;  ///< of a graph: whole cycles through the caches, about 3 ms of work, at most 64 calls or one cycle
};
struct ProfileResult {
  Timing time;
  Timing fp16, fp8;            ///< baselines; median 0 = not run
  double bytes = 0;            ///< that must be read (Store, Encode, Dequant, Prefill: read and written)
  double flops = 0;            ///< Prefill: of the two products, a multiply-add being two
  std::string path;            ///< decode_path(), prefill_path(), or the operation's name
  double relative_error = -1;  ///< -1 = not checked
  int caches = 0;              ///< the cycle's length
  std::string skipped;         ///< why there is no result; empty = there is one
};

/// Bytes of device memory profile() will allocate, and the number of caches it cycles through.
struct ProfilePlan {
  std::size_t bytes = 0;
  int caches = 0;
};
ProfilePlan profile_plan(const ProfileShape& shape, const ProfileOptions& options, const DeviceInfo& device);

/// Runs one point on the current device. A point too large for the free memory comes back with `skipped` set.
ProfileResult profile(const ProfileShape& shape, const ProfileOptions& options);

/// Bytes a second of a kernel that only reads several GB: the ceiling.
double read_bandwidth();
/// Seconds of an empty kernel in a graph of many.
double launch_seconds();

}  // namespace tq4::gpu
