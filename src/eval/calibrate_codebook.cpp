// Lloyd's iteration on the encoder's own inputs. What coordinate j is quantized from is not an output of the codec, but follows from it: with
// y = forward (x - centre), c the decoded centroids and s the stored scale, the closed loop's remaining error is r = (I + feedback)(y - s c),
// so pair j was quantized from s c_j + r_j in units of s.
#include "eval/calibrate_codebook.h"

#include <cstddef>

#include "core/pack.h"
#include "tq4/codec.h"

namespace tq4::eval {
namespace {

constexpr double kPrior = 20;  ///< vectors' worth of weight that holds a point where the Gaussian table has it

/// out [n, D] = x [n, D] times matrix^T.
void apply(const float* matrix, const std::vector<float>& x, std::size_t dim, std::vector<float>& out) {
  out.resize(x.size());
  for (std::size_t row = 0; row < x.size(); row += dim) {
    for (std::size_t i = 0; i < dim; ++i) {
      const float* m = matrix + i * dim;
      float lanes[8] = {};
      for (std::size_t j = 0; j < dim; ++j) lanes[j & 7] += m[j] * x[row + j];
      out[row + i] = ((lanes[0] + lanes[4]) + (lanes[1] + lanes[5])) + ((lanes[2] + lanes[6]) + (lanes[3] + lanes[7]));
    }
  }
}

struct Sums {
  std::vector<double> weight, x, y;
  explicit Sums(std::size_t points) : weight(points), x(points), y(points) {}
};

}  // namespace

std::vector<float> fit_pair_points(const CodebookProblem& p) {
  const auto dim = static_cast<std::size_t>(p.dim);
  const Codec plain(p.spec, p.dim);
  const std::vector<float> gaussian = plain.pair_table().points;
  std::vector<float> points = gaussian;
  std::vector<std::vector<float>> transformed(p.sample.size());
  double unit = 0, vectors = 0;  // mean of weight * scale^2
  std::vector<float> error, remains, decoded, scale;
  std::vector<std::uint8_t> packed, codes(dim);
  for (int round = 0; round < p.rounds; ++round) {
    const PairTable table{p.spec.bits, p.dim, points};
    const Codec codec(p.spec, p.dim, plain.codebook(), plain.rotation(), &table);
    Sums sums(points.size() / 2);
    unit = vectors = 0;
    for (std::size_t n = 0; n < p.sample.size(); ++n) {
      const SampledRows& part = p.sample[n];
      const std::size_t rows = part.weights.size();
      const HeadTransform transform = head_transform(p.layer, p.side, part.head, part.position0);
      if (transformed[n].empty()) {
        apply(transform.forward != nullptr ? transform.forward : plain.rotation().matrix.data(), part.centred, dim, transformed[n]);
      }
      packed.resize(rows * codec.code_bytes());
      scale.resize(rows);
      decoded.resize(rows * dim);
      codec.encode(part.rows.data(), DType::F32, static_cast<std::int64_t>(rows), {packed.data(), scale.data()}, transform);
      codec.decode_rotated({packed.data(), scale.data()}, static_cast<std::int64_t>(rows), decoded.data());
      error = transformed[n];
      for (std::size_t i = 0; i < error.size(); ++i) error[i] -= decoded[i];
      if (transform.feedback != nullptr) {
        apply(transform.feedback, error, dim, remains);
        for (std::size_t i = 0; i < error.size(); ++i) error[i] += remains[i];
      }
      for (std::size_t r = 0; r < rows; ++r) {
        const double s = scale[r], weight = part.weights[r] * s * s;
        if (!(weight > 0)) continue;
        unit += weight;
        vectors += 1;
        core::unpack_codes(packed.data() + r * codec.code_bytes(), dim, p.spec.bits, codes.data());
        for (std::size_t j = 0; j < dim; j += 2) {
          const std::size_t at = codes[j] | static_cast<std::size_t>(codes[j + 1]) << p.spec.bits;
          sums.weight[at] += weight;
          sums.x[at] += weight * (points[2 * at] + error[r * dim + j] / s);
          sums.y[at] += weight * (points[2 * at + 1] + error[r * dim + j + 1] / s);
        }
      }
    }
    if (!(vectors > 0)) return gaussian;
    const double prior = kPrior * unit / vectors;
    for (std::size_t at = 0; at < sums.weight.size(); ++at) {
      const double total = sums.weight[at] + prior;
      points[2 * at] = static_cast<float>((sums.x[at] + prior * gaussian[2 * at]) / total);
      points[2 * at + 1] = static_cast<float>((sums.y[at] + prior * gaussian[2 * at + 1]) / total);
    }
  }
  return points;
}

}  // namespace tq4::eval
