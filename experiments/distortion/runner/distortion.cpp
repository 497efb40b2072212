// The paper's distortion curves (arXiv 2504.19874, figures 1 to 3), measured on the project's codec: squared error of random unit vectors and of
// their inner products with other random unit vectors, 1 to 4 bits, d = 64, 128, 256 and 1536. Public Codec objects do the coding wherever they
// go. They stop at head_dim 512 and have no 1-bit QJL codec, so for those the library's own pieces (codebook, bit packing left out, QJL matrix) are
// put together here in the codec's order, without a rotation: a uniformly random vector stays one when it is rotated. The program first
// proves on d = 128 that this composition gives the codec's very floats. Prints JSON; the numbers do not depend on the machine.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <functional>
#include <memory>
#include <numbers>
#include <string>
#include <vector>

#include "core/qjl.h"
#include "core/random.h"
#include "cpu/scalar.h"
#include "tq4/codebook.h"
#include "tq4/codec.h"

namespace {

using namespace tq4;

SideSpec side_spec(CodeKind kind, int bits, ScaleRule rule, RotationKind rotation) {
  SideSpec spec;
  spec.kind = kind;
  spec.bits = bits;
  spec.scale_rule = rule;
  spec.rotation = rotation;
  return spec;
}

using Reconstruct = std::function<void(const float* x, float* out)>;

/// The public codec, one vector at a time.
Reconstruct codec_reconstruct(const SideSpec& spec, int dim) {
  auto codec = std::make_shared<Codec>(spec, dim);
  return [codec, dim](const float* x, float* out) {
    std::vector<std::uint8_t> codes(codec->code_bytes()), signs(static_cast<std::size_t>(dim) / 8);
    float scale = 0, residual = 0;
    const bool prod = codec->has_signs();
    codec->encode(
        x, DType::F32, 1,
        {.codes = codes.data(), .scale = &scale, .signs = prod ? signs.data() : nullptr, .residual_norm = prod ? &residual : nullptr});
    codec->decode(
        {.codes = codes.data(), .scale = &scale, .signs = prod ? signs.data() : nullptr, .residual_norm = prod ? &residual : nullptr}, 1,
        out);
  };
}

/// The same from the library's pieces, any dimension, no rotation. `bits` of the codebook; 0 with Prod: QJL of the vector itself.
Reconstruct composed_reconstruct(CodeKind kind, int bits, ScaleRule rule, int dim) {
  struct Tables {
    std::vector<float> centroids, boundaries, qjl;
  };
  auto t = std::make_shared<Tables>();
  if (bits > 0) {
    const Codebook book = make_codebook(CodebookKind::Sphere, bits, dim);
    t->centroids.assign(book.centroids.begin(), book.centroids.end());
    t->boundaries.assign(book.boundaries.begin(), book.boundaries.end());
  } else {
    t->centroids = {0.0f};
  }
  if (kind == CodeKind::Prod) t->qjl = core::make_qjl_matrix(dim, SideSpec{}.seed);
  return [t, kind, rule, dim](const float* x, float* out) {
    const float norm = std::sqrt(cpu::dot16(x, x, dim)), inv = 1.0f / norm;
    for (int j = 0; j < dim; ++j)
      out[j] = t->centroids[cpu::code_of(x[j] * inv, t->boundaries.data(), static_cast<int>(t->boundaries.size()))];
    float scale = norm;
    if (rule == ScaleRule::LeastSquares) scale = cpu::dot16(x, out, dim) / cpu::dot16(out, out, dim);
    if (rule == ScaleRule::Unbiased) scale = cpu::dot16(x, x, dim) / cpu::dot16(x, out, dim);
    scale = cpu::round_scale(scale, ScaleDType::F16);
    std::vector<float> r(static_cast<std::size_t>(dim)), sum(r.size());
    if (kind == CodeKind::Prod) {
      for (int j = 0; j < dim; ++j) r[static_cast<std::size_t>(j)] = std::fma(-scale, out[j], x[j]);
      for (int i = 0; i < dim; ++i) {
        const float* row = t->qjl.data() + static_cast<std::ptrdiff_t>(i) * dim;
        float acc = 0;
        for (int j = 0; j < dim; ++j) acc = std::fma(row[j], r[static_cast<std::size_t>(j)], acc);
        for (int j = 0; j < dim; ++j) sum[static_cast<std::size_t>(j)] += acc >= 0.0f ? row[j] : -row[j];
      }
    }
    for (int j = 0; j < dim; ++j) out[j] *= scale;
    if (kind != CodeKind::Prod) return;
    const float length = cpu::round_scale(std::sqrt(cpu::dot16(r.data(), r.data(), dim)), ScaleDType::F16);
    const float gain = static_cast<float>(std::sqrt(std::numbers::pi / 2.0) / dim) * length;
    for (int j = 0; j < dim; ++j) out[j] = std::fma(gain, sum[static_cast<std::size_t>(j)], out[j]);
  };
}

void random_unit(core::NormalGenerator& normal, std::vector<float>& x) {
  double sum = 0;
  for (float& value : x) {
    value = static_cast<float>(normal.next());
    sum += static_cast<double>(value) * value;
  }
  for (float& value : x) value = static_cast<float>(value / std::sqrt(sum));
}

double dot(const std::vector<float>& a, const std::vector<float>& b) {
  double sum = 0;
  for (std::size_t j = 0; j < a.size(); ++j) sum += static_cast<double>(a[j]) * b[j];
  return sum;
}

struct Sums {
  double n = 0, sum = 0, squares = 0;
  void add(double x) { ++n, sum += x, squares += x * x; }
  double mean() const { return sum / n; }
  double error() const { return std::sqrt((squares / n - mean() * mean()) / (n - 1)); }
};

/// True inner products at which mean and variance of the estimate are looked at (the paper's figure 2 has these four averages).
constexpr double kProducts[] = {0.01, 0.06, 0.10, 0.17};

struct Method {
  const char* name;  ///< mse, prod: the paper's; mse-ls, mse-unbiased: with the other stored scales
  int bits;
  bool composed;
  Reconstruct reconstruct;
  Sums mse, product, slope, at[4], at_squared[4];
};

std::vector<Method> methods(int dim) {
  std::vector<Method> list;
  const bool composed = dim > cpu::kMaxDim;
  const auto add = [&](const char* name, CodeKind kind, int bits, ScaleRule rule) {
    const bool by_hand = composed || (kind == CodeKind::Prod && bits == 1);
    list.push_back({name,
                    bits,
                    by_hand,
                    by_hand ? composed_reconstruct(kind, kind == CodeKind::Prod ? bits - 1 : bits, rule, dim)
                            : codec_reconstruct(side_spec(kind, bits, rule, RotationKind::Haar), dim),
                    {},
                    {},
                    {},
                    {},
                    {}});
  };
  for (int bits = 1; bits <= 4; ++bits) {
    add("mse", CodeKind::Mse, bits, ScaleRule::Norm);
    add("prod", CodeKind::Prod, bits, ScaleRule::Norm);
    add("mse-ls", CodeKind::Mse, bits, ScaleRule::LeastSquares);
    add("mse-unbiased", CodeKind::Mse, bits, ScaleRule::Unbiased);
  }
  return list;
}

void measure(int dim, int vectors, int queries, bool last) {
  std::vector<Method> list = methods(dim);
  core::NormalGenerator normal(1000 + static_cast<std::uint64_t>(dim));
  std::vector<float> x(static_cast<std::size_t>(dim)), back(x.size()), error(x.size());
  std::vector<std::vector<float>> y(static_cast<std::size_t>(queries), x);
  for (int v = 0; v < vectors; ++v) {
    random_unit(normal, x);
    for (std::vector<float>& q : y) random_unit(normal, q);
    for (Method& m : list) {
      m.reconstruct(x.data(), back.data());
      for (std::size_t j = 0; j < x.size(); ++j) error[j] = back[j] - x[j];
      m.mse.add(dot(error, error));
      const double along = dot(error, x);
      m.slope.add(1 + along);
      Sums here;
      for (const std::vector<float>& q : y) {
        const double e = dot(error, q);
        here.add(e * e);
        // The part of q across x, turned so that the inner product is exactly the one wanted.
        const double a = dot(q, x), across = (e - a * along) / std::sqrt(1 - a * a);
        for (int p = 0; p < 4; ++p) {
          const double estimate_error = kProducts[p] * along + std::sqrt(1 - kProducts[p] * kProducts[p]) * across;
          m.at[p].add(estimate_error);
          m.at_squared[p].add(estimate_error * estimate_error);
        }
      }
      m.product.add(here.mean());  // one number a vector: queries of one vector share its error
    }
  }
  for (std::size_t i = 0; i < list.size(); ++i) {
    Method& m = list[i];
    std::printf("    {\"method\": \"%s\", \"d\": %d, \"bits\": %d, \"vectors\": %d, \"queries\": %d, \"codec\": \"%s\",\n", m.name, dim,
                m.bits, vectors, queries, m.composed ? "composed" : "tq4::Codec");
    std::printf(
        "     \"mse\": %.6g, \"mse_se\": %.2g, \"product_times_d\": %.6g, \"product_times_d_se\": %.2g, \"slope\": %.6g, \"slope_se\": "
        "%.2g,\n",
        m.mse.mean(), m.mse.error(), dim * m.product.mean(), dim * m.product.error(), m.slope.mean(), m.slope.error());
    std::printf("     \"at\": [");
    for (int p = 0; p < 4; ++p)
      std::printf("%s{\"product\": %.2f, \"bias\": %.3g, \"bias_se\": %.2g, \"variance_times_d\": %.5g}", p == 0 ? "" : ", ", kProducts[p],
                  m.at[p].mean(), m.at[p].error(), dim * (m.at_squared[p].mean() - m.at[p].mean() * m.at[p].mean()));
    std::printf("]}%s\n", last && i + 1 == list.size() ? "" : ",");
  }
}

/// Whether the composition is the codec, float for float, where both exist.
bool composition_is_the_codec() {
  constexpr int kDim = 128;
  core::NormalGenerator normal(7);
  std::vector<float> x(kDim), a(kDim), b(kDim);
  for (const CodeKind kind : {CodeKind::Mse, CodeKind::Prod}) {
    for (const ScaleRule rule : {ScaleRule::Norm, ScaleRule::LeastSquares, ScaleRule::Unbiased}) {
      for (int bits = kind == CodeKind::Prod ? 2 : 1; bits <= 4; ++bits) {
        const Reconstruct codec = codec_reconstruct(side_spec(kind, bits, rule, RotationKind::None), kDim);
        const Reconstruct composed = composed_reconstruct(kind, kind == CodeKind::Prod ? bits - 1 : bits, rule, kDim);
        for (int v = 0; v < 500; ++v) {
          random_unit(normal, x);
          codec(x.data(), a.data());
          composed(x.data(), b.data());
          if (std::memcmp(a.data(), b.data(), kDim * sizeof(float)) != 0) return false;
        }
      }
    }
  }
  return true;
}

}  // namespace

int main() {
  if (!composition_is_the_codec()) {
    std::fprintf(stderr, "the composed codec differs from tq4::Codec at d = 128\n");
    return 1;
  }
  std::printf("{\n  \"theory\": [\n");
  for (const int dim : {64, 128, 256, 1536}) {
    for (int bits = 1; bits <= 4; ++bits) {
      const CodebookStats stats = codebook_stats(make_codebook(CodebookKind::Sphere, bits, dim));
      const double coarser = bits == 1 ? 1 : codebook_stats(make_codebook(CodebookKind::Sphere, bits - 1, dim)).mse;
      std::printf("    {\"d\": %d, \"bits\": %d, \"mse\": %.6g, \"prod_times_d\": %.6g}%s\n", dim, bits, stats.mse,
                  std::numbers::pi / 2 * coarser, dim == 1536 && bits == 4 ? "" : ",");
    }
  }
  std::printf("  ],\n  \"measured\": [\n");
  measure(64, 32768, 16, false);
  measure(128, 16384, 16, false);
  measure(256, 8192, 32, false);
  measure(1536, 2048, 64, true);
  std::printf("  ]\n}\n");
  return 0;
}
