// Compressor: anything that turns one head's K or V into a reconstruction and says how many bits that took. tq4's own codecs and those of
// others (llama.cpp, KIVI, KVQuant, FP4 formats, vLLM, ...) look alike through it, so that the quality report compares them at their true
// sizes. Reconstructions are simulated value by value; no baseline has a byte format here.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "tq4/calibration.h"
#include "tq4/metrics.h"
#include "tq4/spec.h"
#include "tq4/types.h"

namespace tq4 {

/// The vectors of one head: tokens 0 .. tokens - 1 of a sequence, in order.
struct HeadVectors {
  Side side = Side::K;
  int layer = 0;
  int head = 0;  ///< kv head
  std::int64_t tokens = 0;
  int dim = 0;
  const float* x = nullptr;  ///< [tokens, dim]
};

/// Bits of one head and side after `tokens` tokens.
struct Footprint {
  double code_bits = 0;      ///< everything stored a token or a group of tokens: codes, scales, zeros, signs, outliers
  double exact_bits = 0;     ///< tokens kept in fp16 (sinks, windows, KIVI's residual)
  double constant_bits = 0;  ///< once a head: centres, channel scales, learned levels
  double matrix_bits = 0;  ///< calibrated [D, D] matrices: part of the model like its weights, the same for every sequence; not in total()
  std::int64_t exact_tokens = 0;
  double total() const { return code_bits + exact_bits + constant_bits; }
};

class Compressor {
 public:
  virtual ~Compressor() = default;
  virtual std::string name() const = 0;
  virtual std::string description() const = 0;  ///< one line: what is stored
  virtual std::string source() const = 0;       ///< paper or project it comes from
  /// out: [tokens, dim]. Deterministic; may be called from several threads. Needs finite input.
  virtual void reconstruct(const HeadVectors& head, float* out) const = 0;
  /// Code, constant and matrix bits when `tokens` tokens of `dim` values are compressed (none exact).
  virtual Footprint encoded(const HeadVectors& shape) const = 0;
  /// Tokens a query sees exactly instead of reconstructed.
  virtual ExactTokens exact(Side side) const;
  /// Relative squared error on random unit vectors in theory; NaN where none is known.
  virtual double theoretical_mse(Side side, int dim) const;
  /// The spec, where the compressor is one of tq4's codecs (also with a peer's tables); else null.
  virtual const CodecSpec* spec() const { return nullptr; }
  /// The calibration a codec of tq4's uses; else null.
  virtual const Calibration* calibration() const { return nullptr; }
  /// Throws Unsupported where the compressor cannot serve the dimension.
  virtual void check(int dim) const;

  /// What the whole head takes after shape.tokens tokens, exact tokens included.
  Footprint footprint(const HeadVectors& shape) const;
};

/// tq4's codec `spec` (its sinks and window included). `calibration` may be null; it must outlive the compressor.
std::unique_ptr<Compressor> codec_compressor(std::string name, const CodecSpec& spec, const Calibration* calibration = nullptr);

/// The same codec, encoded and decoded on CUDA device `device` (metrics stay on the CPU). Throws NoDevice where there is none, or the
/// build has no CUDA.
std::unique_ptr<Compressor> device_codec_compressor(std::string name, const CodecSpec& spec, const Calibration* calibration, int device);

/// A compressor by name: those of spec_from_name and the baselines below, each with optional suffixes "+wN" (the last N tokens exact) and
/// "+sN" (the first N). Throws Usage.
///   int8 int4               one scale (int4: and zero) a token and head
///   intB-gN[-rot]           B = 2..8 bits in groups of N along the head dimension, scale and zero a group, after a Hadamard rotation
///   q8_0 q4_0 q4_0-rot      llama.cpp's blocks of 32; -rot as its attention rotation does
///   kiviB[-gN][-rN]         keys a channel, values a token, groups of N (32), residual window of N tokens
///   kvquantB[-1%]           non-uniform levels, keys a channel, values a token; 1% outliers kept sparse
///   nvfp4 mxfp4             E2M1 in blocks of 16 (E4M3 scales) or 32 (E8M0 scales)
std::unique_ptr<Compressor> make_compressor(std::string_view name);

/// Names of every baseline the report shows with `--codec all`, cheapest explanation first.
const std::vector<std::string>& baseline_names();
/// All that `--codec all` shows: tq4's own codecs, then the baselines. experiments/perplexity measures the same list.
const std::vector<std::string>& codec_names();

}  // namespace tq4
