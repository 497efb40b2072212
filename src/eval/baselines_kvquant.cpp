// KVQuant-style quantization (arXiv 2401.18079): 2^b non-uniform levels shared by a head, on values scaled to [-1, 1] a channel (keys) or a
// token (values); with "-1%" the extremes of each channel or token are kept apart in sparse fp16. Where the paper calibrates levels and key
// scales on other text and weighs by Fisher information, this fits them to the very data, unweighted, after RoPE: kinder to it in the first, not
// in the others.
#include <algorithm>
#include <array>
#include <cmath>
#include <vector>

#include "eval/baselines.h"

namespace tq4::eval {
namespace {

constexpr int kBins = 4096;

/// A channel's or token's range without its outliers.
struct Span {
  float lo = 0, hi = 0;
  float half() const { return (hi - lo) / 2; }
  float middle() const { return lo + half(); }
};

class KvQuant final : public Compressor {
 public:
  KvQuant(int bits, bool outliers) : bits_(bits), outliers_(outliers) {}

  std::string name() const override { return "kvquant" + std::to_string(bits_) + (outliers_ ? "-1%" : ""); }
  std::string description() const override {
    return std::to_string(bits_) + "-bit non-uniform levels a head, keys scaled a channel, values a token" +
           (outliers_ ? ", 1% outliers in sparse fp16" : ", no outliers kept apart") + " (fitted to this data)";
  }
  std::string source() const override { return "KVQuant, arXiv 2401.18079 (nuq; after RoPE, without Fisher weights)"; }

  void reconstruct(const HeadVectors& head, float* out) const override {
    const bool keys = head.side == Side::K;
    const std::int64_t lines = keys ? head.dim : head.tokens, count = keys ? head.tokens : head.dim;
    const std::int64_t stride = keys ? head.dim : 1, step = keys ? 1 : head.dim;
    std::vector<Span> spans(static_cast<std::size_t>(lines));
    std::vector<double> histogram(kBins, 0.0);
    std::vector<float> sorted;
    for (std::int64_t i = 0; i < lines; ++i) {
      Span& span = spans[static_cast<std::size_t>(i)];
      span = range(head.x + i * step, count, stride, sorted);
      if (!keys) {  // stored a token
        const float scale = to_half(span.half()), middle = to_half(span.middle());
        span = {middle - scale, middle + scale};
      }
      for (std::int64_t j = 0; j < count; ++j) {
        const float z = scaled(head.x[i * step + j * stride], span);
        if (std::fabs(z) <= 1) ++histogram[static_cast<std::size_t>(std::min(kBins - 1, static_cast<int>((z + 1) / 2 * kBins)))];
      }
    }
    const std::vector<float> levels = fit_levels(histogram);
    for (std::int64_t i = 0; i < lines; ++i) {
      const Span& span = spans[static_cast<std::size_t>(i)];
      for (std::int64_t j = 0; j < count; ++j) {
        const std::int64_t at = i * step + j * stride;
        const float x = head.x[at];
        const bool apart = outliers_ && (x < span.lo || x > span.hi) && (keys || is_extreme(head.x + i * step, count, x));
        out[at] = apart ? to_half(x) : span.middle() + span.half() * nearest(levels, scaled(x, span));
      }
    }
  }

  Footprint encoded(const HeadVectors& shape) const override {
    const double values = static_cast<double>(shape.tokens) * shape.dim;
    Footprint f;
    f.code_bits = values * bits_;
    f.constant_bits = 16.0 * (1 << bits_);
    if (shape.side == Side::K)
      f.constant_bits += 32.0 * shape.dim;
    else
      f.code_bits += 32.0 * static_cast<double>(shape.tokens);
    if (outliers_) {  // fp16 value and 16-bit index each
      const double apart = shape.side == Side::K ? 2.0 * static_cast<double>(apart_each_end(shape.tokens)) * shape.dim
                                                 : 2.0 * static_cast<double>(apart_each_end(shape.dim)) * static_cast<double>(shape.tokens);
      f.code_bits += 32.0 * apart;
    }
    return f;
  }

 private:
  /// 0.5% at each end, at least one.
  std::int64_t apart_each_end(std::int64_t count) const { return outliers_ ? std::max<std::int64_t>(1, (count + 100) / 200) : 0; }

  Span range(const float* x, std::int64_t count, std::int64_t stride, std::vector<float>& sorted) const {
    sorted.resize(static_cast<std::size_t>(count));
    for (std::int64_t j = 0; j < count; ++j) sorted[static_cast<std::size_t>(j)] = x[j * stride];
    const std::int64_t skip = std::min(apart_each_end(count), (count - 1) / 2);
    const auto low = sorted.begin() + skip, high = sorted.end() - 1 - skip;
    std::nth_element(sorted.begin(), low, sorted.end());
    const float lo = *low;
    std::nth_element(sorted.begin(), high, sorted.end());
    return {lo, *high};
  }
  /// Whether x is among the apart_each_end values at either end: the stored span of a token is rounded to fp16, which could put one more out.
  bool is_extreme(const float* x, std::int64_t count, float value) const {
    std::int64_t below = 0, above = 0;
    for (std::int64_t j = 0; j < count; ++j) {
      below += x[j] < value ? 1 : 0;
      above += x[j] > value ? 1 : 0;
    }
    return std::min(below, above) < apart_each_end(count);
  }
  static float scaled(float x, const Span& span) { return span.half() > 0 ? (x - span.middle()) / span.half() : 0.0f; }

  /// 1-D k-means on the histogram, from quantiles.
  std::vector<float> fit_levels(const std::vector<double>& histogram) const {
    const int count = 1 << bits_;
    double total = 0;
    for (const double h : histogram) total += h;
    const auto value = [](int bin) { return (bin + 0.5) / kBins * 2 - 1; };
    std::vector<double> levels;
    double seen = 0;
    for (int bin = 0; bin < kBins; ++bin) {
      seen += histogram[static_cast<std::size_t>(bin)];
      while (static_cast<int>(levels.size()) < count && seen >= (static_cast<double>(levels.size()) + 0.5) / count * total)
        levels.push_back(value(bin));
    }
    levels.resize(static_cast<std::size_t>(count), 1.0);
    for (int round = 0; round < 100; ++round) {
      std::vector<double> sum(levels.size(), 0.0), weight(levels.size(), 0.0);
      std::size_t at = 0;
      for (int bin = 0; bin < kBins; ++bin) {
        while (at + 1 < levels.size() && value(bin) > (levels[at] + levels[at + 1]) / 2) ++at;
        sum[at] += value(bin) * histogram[static_cast<std::size_t>(bin)];
        weight[at] += histogram[static_cast<std::size_t>(bin)];
      }
      for (std::size_t i = 0; i < levels.size(); ++i) {
        if (weight[i] > 0) levels[i] = sum[i] / weight[i];
      }
    }
    std::vector<float> rounded(levels.begin(), levels.end());
    for (float& level : rounded) level = to_half(level);
    std::sort(rounded.begin(), rounded.end());
    return rounded;
  }
  static float nearest(const std::vector<float>& levels, float z) {
    const auto above = std::lower_bound(levels.begin(), levels.end(), z);
    if (above == levels.begin()) return levels.front();
    if (above == levels.end()) return levels.back();
    return z - *(above - 1) <= *above - z ? *(above - 1) : *above;
  }

  int bits_;
  bool outliers_;
};

}  // namespace

std::unique_ptr<Compressor> make_kvquant(int bits, bool outliers) { return std::make_unique<KvQuant>(bits, outliers); }

}  // namespace tq4::eval
