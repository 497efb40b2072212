// A decode attention problem: random K and V stored by our own store, permuted pages, the call, and the float64 answer of the CPU reference
// on what the pages hold. Tests describe a problem with DecodeCase and read errors.
#pragma once

#include <cmath>
#include <memory>

#include "gpu/gpu_test.h"
#include "tq4/attention.h"

namespace tq4::gpu {

struct DecodeCase {
  std::string spec = "tq4";
  LayoutKind kind = LayoutKind::Native;
  int dim = 128, q_heads = 8, kv_heads = 2, block_size = 16, q_len = 1;
  std::vector<int> lengths = {1, 16, 77, 300};
  DType dtype = DType::F16;
  bool padded = false, swapped = false;
  int window = 0;
  float soft_cap = 0;
  bool alibi = false, sink_logits = false;
  int exact_sinks = 0, exact_window = 0;
  bool exact_rotated = false;  ///< the exact tokens as the fused kernel wants them: forward (x - centre)
  CalibrationOptions calibration = {};
  bool q_rotated = false, out_rotated = false;
  bool general_path = false;         ///< not the fused kernel
  RotationKind* rotation = nullptr;  ///< replaces the spec's rotation on both sides
  float key_mean = 0;                ///< added to every key coordinate: a bias as models have it
};

struct DecodeErrors {
  double out = 0;        ///< |out - reference| / |reference| over the whole result
  double worst_row = 0;  ///< the same of the worst query row, over the typical length of a row
  double lse = 0;        ///< largest absolute difference
  bool finite = true;
};

class DecodeProblem {
 public:
  DecodeProblem(const DecodeCase& c, unsigned seed);
  void run(Stream stream = nullptr);  ///< poisons out, calls decode()
  DecodeErrors errors() const;        ///< of the last run
  /// What the pages hold of a sequence, decoded on the CPU: [kv_heads][length][D].
  std::vector<float> values(std::size_t sequence, Side side, bool rotated) const;
  std::vector<std::uint8_t> out() const { return out_->host(); }
  void set_lengths(const std::vector<int>& lengths);  ///< shorter ones only
  DecodeParams& params() { return params_; }
  const DeviceCodec& codec() const { return *codec_; }
  std::string path() const { return decode_path(*codec_, params_); }

 private:
  DecodeCase c_;
  CodecSpec spec_;
  LayerCalibration calibration_;
  std::unique_ptr<DeviceCodec> codec_;
  PageLayout layout_;
  DecodeParams params_;
  std::vector<int> lengths_;
  std::vector<std::vector<std::int64_t>> slots_;  ///< per sequence and position
  Values k_, v_, q_;                              ///< [tokens][kv heads][D], [rows][q heads][D]
  std::vector<std::int64_t> first_token_;
  std::vector<float> slopes_, sinks_;
  std::unique_ptr<Device<std::uint8_t>> cache_, out_, device_q_, workspace_;
  std::unique_ptr<Device<std::int32_t>> table_, seq_lens_;
  std::unique_ptr<Device<float>> lse_, device_slopes_, device_sinks_;
  std::unique_ptr<Device<std::uint16_t>> sink_k_, sink_v_, window_k_, window_v_;
  std::int64_t num_blocks_ = 0;
  std::vector<float> query_in_original_space() const;
  void fill_exact();
  void exact_row(Side side, std::size_t head, const std::uint16_t* from, std::uint16_t* to) const;
};

}  // namespace tq4::gpu
