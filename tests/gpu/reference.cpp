// Calibrations made up for tests: transforms that are no rotations, centres as large as the vectors.
#include "gpu/gpu_test.h"
#include "tq4/calibration.h"

namespace tq4::gpu {

LayerCalibration made_up_calibration(const CodecSpec& spec, int head_dim, int num_kv_heads, const CalibrationOptions& options,
                                     Random& random) {
  LayerCalibration c;
  c.num_kv_heads = num_kv_heads;
  c.head_dim = head_dim;
  std::normal_distribution<float> normal;
  std::uniform_real_distribution<float> stretch(0.5f, 2.0f);
  const auto d = static_cast<std::size_t>(head_dim);
  for (SideCalibration* side : {&c.k, &c.v}) {
    const Rotation rotation = make_rotation(RotationKind::Haar, head_dim, side == &c.k ? spec.k.seed : spec.v.seed + 1);
    for (int h = 0; h < num_kv_heads; ++h) {
      std::vector<float> diagonal(d);
      for (float& f : diagonal) f = stretch(random);
      for (std::size_t i = 0; options.matrices && i < d; ++i) {
        for (std::size_t j = 0; j < d; ++j) side->forward.push_back(rotation.matrix[i * d + j] * diagonal[j]);
      }
      for (std::size_t i = 0; options.matrices && i < d; ++i) {
        for (std::size_t j = 0; j < d; ++j) side->inverse.push_back(rotation.matrix[j * d + i] / diagonal[i]);
      }
      for (std::size_t j = 0; options.centres && j < d; ++j) side->centre.push_back(normal(random));
      for (std::size_t j = 0; options.rope && side == &c.k && j < d; ++j) side->rope_mu.push_back(normal(random));
    }
  }
  c.rope_theta = 10000;
  c.rope_dim = head_dim / 4 * 2;
  return c;
}

}  // namespace tq4::gpu
