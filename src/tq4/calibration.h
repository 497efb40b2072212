// Calibration: what was learned from one text about each layer and head, applied to all others. It changes only the tables around the
// decode kernel (per-head matrices, centres, pair tables), never the bytes per token. Stored as a .tq4cal file (safetensors).
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "tq4/codec.h"
#include "tq4/dump.h"

namespace tq4 {

/// Tables of one side of one layer. Empty vectors mean "not calibrated": the codec's rotation, no centre, the codec's pair table.
struct SideCalibration {
  std::vector<float> forward;        ///< [Hk, D, D]: R A
  std::vector<float> inverse;        ///< [Hk, D, D]: A^-1 R^T
  std::vector<float> centre;         ///< [Hk, D]
  std::vector<float> rope_mu;        ///< [Hk, D] mean of keys before RoPE (K only)
  std::vector<float> pair_points;    ///< [4^bits, 2], shared by the heads of the layer
  std::vector<float> feedback;       ///< [Hk, D, D]: HeadTransform::feedback of each head; empty = none
  std::vector<float> feedback_gain;  ///< [Hk]; empty = 1
};
struct LayerCalibration {
  int layer = 0;
  int num_kv_heads = 0;
  int head_dim = 0;
  double rope_theta = 0;
  int rope_dim = 0;
  SideCalibration k, v;
};
struct Calibration {
  CodecSpec spec;                 ///< the spec it was made for (rotation and seed are baked into `forward`)
  std::string model;              ///< the dump's model attribute
  std::uint64_t fingerprint = 0;  ///< calibration_fingerprint(model, layers): refused on mismatch
  std::int64_t tokens = 0;        ///< tokens it was estimated from
  std::vector<LayerCalibration> layers;
  const LayerCalibration* find(int layer) const;  ///< null when the layer is not in it
};

/// What calibration puts around the codebook. Each includes the ones before it; the bytes per token and the decode kernel stay the same.
enum class CalibrationMethod : std::uint8_t {
  None,       ///< nothing: the side stays as the codec has it
  Centre,     ///< the mean of each head is subtracted
  Transform,  ///< and R A takes the place of R, A^T A = Sk^-1 # Sq: least logit error where noise is spread evenly
  Feedback  ///< or a predictive transform: codes make good what earlier ones got wrong (HeadTransform::feedback), see eval/calibrate_tables.h
};
/// Where the points of a pair codebook come from.
enum class PairFit : std::uint8_t {
  Gaussian,  ///< the two-dimensional normal quantizer, the same for all
  Layer,     ///< fitted to what each layer's encoder quantizes on the calibration text, one table a layer and side
  Attention  ///< the same, keys weighted by the attention that they get (needs Q)
};
PairFit pair_fit_from_name(std::string_view name);                      ///< "gaussian", "layer", "attention"; throws Usage
CalibrationMethod calibration_method_from_name(std::string_view name);  ///< "none", "centre", "transform", "feedback"; throws Usage
std::string_view calibration_method_name(CalibrationMethod method);

struct CalibrateOptions {
  CodecSpec spec;  ///< sides that are not Mse get a centre only where their kind keeps one (Fp8, Fp16, Uniform: none)
  CalibrationMethod method = CalibrationMethod::Feedback;
  std::optional<CalibrationMethod> method_k, method_v;  ///< of one side, where it differs from `method`
  bool centre = true;     ///< false: no means are subtracted, transforms are made from second moments about zero
  bool rope = false;      ///< centre K before RoPE: the dump must say rope_applied and rope_theta; needs a method for K and `centre`
  double shrink = 0.002;  ///< share of the mean eigenvalue added to every covariance, + D / (2 tokens)
  double noise_k = 0.25;  ///< Feedback: the noise that prediction reckons with, in units of the codebook's own error
  double noise_v = 1.0;
  double attention_weight = 0.5;  ///< share of the statistics that is weighted by attention (needs Q): tokens and queries by p (1 - p)
  double output_share = 0;  ///< share of the values' weight that counts all directions of the attention output equally, the rest by o_gram
  PairFit pair_fit = PairFit::Gaussian;  ///< sides with a pair codebook
  int threads = 1;                       ///< 0 = all cores; the tables do not depend on it
  std::function<void(double)> progress;  ///< called with the finished share, from one thread at a time; may be empty
};

/// What calibration saw in one head, for tables and warnings.
struct HeadCalibrationReport {
  int layer = 0, head = 0;
  Side side = Side::K;
  double mean_share = 0;     ///< share of the energy that centring takes away
  double expected_gain = 1;  ///< predicted error of the plain rotation over that of the calibrated transform, same codebook
};
struct CalibrateReport {
  std::vector<HeadCalibrationReport> heads;
  std::vector<std::string> warnings;  ///< too few tokens, no queries, no o_gram, constant heads: what was done instead
};

/// Estimates tables from one or more dumps of one model (each a sequence beginning at position 0). Throws BadInput where they disagree in model
/// or shapes, where values are not finite, and where rope is asked for and the dump does not know its RoPE; Usage where rope is asked for and
/// keys are not centred.
Calibration calibrate(const std::vector<Dump*>& dumps, const CalibrateOptions& options, CalibrateReport* report = nullptr);

/// XXH3-64 over the model's name and each layer's number, kv heads and head_dim: what a calibration is bound to.
std::uint64_t calibration_fingerprint(std::string_view model, const std::vector<LayerCalibration>& layers);
/// Throws BadInput when the calibration was made for another model (by its fingerprint) or lacks, or has in another shape, a layer of the
/// dump. A dump may hold fewer layers than the calibration.
void check_calibration(const Calibration& calibration, const DumpInfo& dump);

/// The transform of one head; position0 is the position of the first vector of the call.
HeadTransform head_transform(const LayerCalibration* layer, Side side, int head, std::int64_t position0 = 0);

}  // namespace tq4
