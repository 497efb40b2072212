// Errors of vectors and of attention. A tile of queries is worked on at a time: exact logits, softmax and output once, then every
// reconstruction against them, so that the exact part costs the same for one codec as for twenty.
#include "tq4/metrics.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <mutex>

#include "eval/attention_tile.h"
#include "eval/parallel.h"
#include "tq4/error.h"

namespace tq4 {
namespace {

using eval::kBlock;
using eval::kPanel;
using eval::PackedMatrix;

double ratio(double error, double energy) {
  if (energy > 0) return error / energy;
  return error > 0 ? std::numeric_limits<double>::infinity() : 0.0;
}

double share(double part, std::int64_t all) { return all > 0 ? part / static_cast<double>(all) : 0.0; }

/// Adds one pair of vectors, x in double or float.
template <class X, class Y>
void add_pair(VectorError& sum, const X* x, const Y* y, int dim) {
  double energy = 0, error = 0, dot = 0, other = 0;
  for (int i = 0; i < dim; ++i) {
    const double a = x[i], b = y[i], d = a - b;
    energy += a * a;
    error += d * d;
    dot += a * b;
    other += b * b;
  }
  ++sum.vectors;
  sum.energy += energy;
  sum.error += error;
  if (energy > 0 && other > 0) {
    ++sum.nonzero;
    sum.cosine_sum += dot / std::sqrt(energy * other);
  }
}

struct Range {
  std::int64_t begin = 0, end = 0;
};

/// A problem with its operands packed, shared by all threads.
struct Prepared {
  const AttentionProblem& problem;
  std::vector<float> q;  ///< [q_heads, q_tokens, dim], times sm_scale
  PackedMatrix k, v;
  std::vector<PackedMatrix> packed;                     ///< every distinct reconstructed side once
  std::vector<const PackedMatrix*> approx_k, approx_v;  ///< one a reconstruction, into `packed`; null where the side is exact

  std::int64_t position(std::int64_t i) const { return problem.q_positions != nullptr ? problem.q_positions[i] : problem.q_start + i; }
  /// The position that windows of exact tokens count from.
  std::int64_t window_position(std::int64_t i) const { return problem.causal ? position(i) : problem.tokens - 1; }
  Range visible(std::int64_t i) const {
    if (!problem.causal) return {0, problem.tokens};
    const std::int64_t end = position(i) + 1;
    return {problem.sliding_window > 0 ? std::max<std::int64_t>(0, end - problem.sliding_window) : 0, end};
  }
};

/// What one thread needs for a tile.
struct Scratch {
  std::int64_t stride = 0;
  std::vector<float> logits, weights, other;  ///< [rows, stride]
  std::vector<double> out, other_out;         ///< [rows, padded dim]
  std::vector<eval::RowSoftmax> exact;
  std::vector<float> block;  ///< [rows, 32]
  std::vector<double> pair;  ///< [2, dim] outputs of one query, exact and approximate
};

/// Columns of the tile that any of its rows sees, widened to whole panels.
struct Tile {
  std::int64_t first_query = 0;
  int rows = 0;
  int head = 0;
  std::int64_t base = 0;  ///< first column, a multiple of 32
  std::int64_t panels = 0;
};

void tile_logits(const Prepared& prepared, const Tile& tile, const PackedMatrix& keys, std::int64_t stride, float* out) {
  const std::int64_t dim = prepared.problem.dim;
  const float* q = prepared.q.data() + (tile.head * prepared.problem.q_tokens + tile.first_query) * dim;
  for (std::int64_t p = 0; p < tile.panels; ++p) {
    eval::multiply_panel(q, dim, tile.rows, keys.panel(tile.base / kPanel + p), dim, out + p * kPanel, stride);
  }
}

/// out[row] = sum over keys of weights * values / sum; weights are zero outside the row's visible keys.
void tile_output(const Tile& tile, const PackedMatrix& values, std::int64_t stride, const float* weights, std::vector<float>& block,
                 double* out) {
  const std::int64_t width = values.panels() * kPanel;
  const std::int64_t last = std::min<std::int64_t>(values.rows, tile.base + tile.panels * kPanel);
  std::fill_n(out, tile.rows * width, 0.0);
  for (std::int64_t begin = tile.base; begin < last; begin += kBlock) {
    const std::int64_t depth = std::min<std::int64_t>(kBlock, last - begin);
    for (std::int64_t p = 0; p < values.panels(); ++p) {
      eval::multiply_panel(weights + (begin - tile.base), stride, tile.rows, values.panel(p) + begin * kPanel, depth, block.data(), kPanel);
      for (int r = 0; r < tile.rows; ++r) {
        double* o = out + r * width + p * kPanel;
        for (int j = 0; j < kPanel; ++j) o[j] += block[static_cast<std::size_t>(r * kPanel + j)];
      }
    }
  }
}

/// Zeroes the weights of a row outside [visible) within the tile's columns.
void clear_outside(const Tile& tile, const Range& visible, float* row) {
  std::fill(row, row + (visible.begin - tile.base), 0.0f);
  std::fill(row + (visible.end - tile.base), row + tile.panels * kPanel, 0.0f);
}

int shared_keys(const eval::TopKeys& a, const eval::TopKeys& b) {
  int shared = 0;
  for (int i = 0; i < a.count; ++i) shared += static_cast<int>(std::count(b.index, b.index + b.count, a.index[i]));
  return shared;
}

/// The exact parts of a query's visible keys: sinks, and the tail.
template <class Body>
void for_exact(const ExactTokens& exact, std::int64_t position, const Range& visible, const Body& body) {
  if (!exact.any()) return;
  const std::int64_t sink_end = std::clamp<std::int64_t>(exact.sinks, visible.begin, visible.end);
  const std::int64_t tail = std::clamp<std::int64_t>(exact.exact_from(position), sink_end, visible.end);
  for (std::int64_t j = visible.begin; j < sink_end; ++j) body(j);
  for (std::int64_t j = tail; j < visible.end; ++j) body(j);
}

class TileRunner {
 public:
  TileRunner(const Prepared& prepared, const std::vector<Reconstruction>& reconstructions)
      : prepared_(prepared), reconstructions_(reconstructions), width_(prepared.v.panels() * kPanel) {}

  /// Adds the tile's sums to errors[i]; writes KL values at kl[i][head * q_tokens + query].
  void run(const Tile& tile, Scratch& s, std::vector<AttentionError>& errors, std::vector<std::vector<float>>& kl) const {
    tile_logits(prepared_, tile, prepared_.k, s.stride, s.logits.data());
    s.exact.resize(static_cast<std::size_t>(tile.rows));
    for (int r = 0; r < tile.rows; ++r) {
      const Range seen = prepared_.visible(tile.first_query + r);
      float* weights = s.weights.data() + r * s.stride;
      s.exact[static_cast<std::size_t>(r)] = eval::softmax_row(s.logits.data() + r * s.stride + (seen.begin - tile.base),
                                                               seen.end - seen.begin, weights + (seen.begin - tile.base));
      clear_outside(tile, seen, weights);
    }
    tile_output(tile, prepared_.v, s.stride, s.weights.data(), s.block, s.out.data());
    for (std::size_t i = 0; i < reconstructions_.size(); ++i) compare(tile, s, i, errors[i], kl[i]);
  }

 private:
  void compare(const Tile& tile, Scratch& s, std::size_t index, AttentionError& error, std::vector<float>& kl) const {
    const Reconstruction& reconstruction = reconstructions_[index];
    const bool keys = reconstruction.k != nullptr;
    if (keys) tile_logits(prepared_, tile, *prepared_.approx_k[index], s.stride, s.other.data());
    std::vector<double> sums(static_cast<std::size_t>(tile.rows));
    for (int r = 0; r < tile.rows; ++r) {
      const std::int64_t query = tile.first_query + r;
      const Range seen = prepared_.visible(query);
      const eval::RowSoftmax& exact = s.exact[static_cast<std::size_t>(r)];
      const float* l = s.logits.data() + r * s.stride;
      float* m = s.other.data() + r * s.stride;
      const std::int64_t n = seen.end - seen.begin, offset = seen.begin - tile.base;
      ++error.queries;
      error.logits += n;
      error.logit_energy += eval::row_variance_sum(l + offset, n);
      float& divergence = kl[static_cast<std::size_t>(tile.head * prepared_.problem.q_tokens + query)];
      if (!keys) {
        sums[static_cast<std::size_t>(r)] = exact.sum;
        ++error.same_top1;
        error.top8 += 1;
        divergence = 0;
        continue;
      }
      for_exact(reconstruction.exact_k, prepared_.window_position(query), seen,
                [&](std::int64_t j) { m[j - tile.base] = l[j - tile.base]; });
      const eval::RowDifference d = eval::compare_rows(l + offset, s.weights.data() + r * s.stride + offset, m + offset, n);
      const eval::RowSoftmax approx = eval::softmax_row(m + offset, n, m + offset);
      clear_outside(tile, seen, m);
      error.logit_error += d.error;
      error.logit_error_centred += std::max(0.0, d.error - d.shift * d.shift / static_cast<double>(n));
      error.logit_max = std::max(error.logit_max, static_cast<double>(d.max));
      // sum p (l - m) - (lse(l) - lse(m))
      divergence = static_cast<float>(std::max(0.0, -d.weighted / exact.sum - (exact.lse() - approx.lse())));
      error.same_top1 += exact.top.index[0] == approx.top.index[0] ? 1 : 0;
      error.top8 += static_cast<double>(shared_keys(exact.top, approx.top)) / exact.top.count;
      sums[static_cast<std::size_t>(r)] = approx.sum;
    }
    const float* weights = keys ? s.other.data() : s.weights.data();
    const bool values = reconstruction.v != nullptr;
    if (keys || values) {
      tile_output(tile, values ? *prepared_.approx_v[index] : prepared_.v, s.stride, weights, s.block, s.other_out.data());
    } else {
      s.other_out = s.out;
    }
    output_error(tile, s, reconstruction, weights, sums, error);
  }

  void output_error(const Tile& tile, Scratch& s, const Reconstruction& reconstruction, const float* weights,
                    const std::vector<double>& sums, AttentionError& error) const {
    const int dim = prepared_.problem.dim;
    for (int r = 0; r < tile.rows; ++r) {
      const std::int64_t query = tile.first_query + r;
      double* exact = s.out.data() + r * width_;
      double* approx = s.other_out.data() + r * width_;
      if (reconstruction.v != nullptr) {
        for_exact(reconstruction.exact_v, prepared_.window_position(query), prepared_.visible(query), [&](std::int64_t j) {
          const double w = weights[r * s.stride + j - tile.base];
          const float* v = prepared_.problem.v + j * dim;
          const float* a = reconstruction.v + j * dim;
          for (int i = 0; i < dim; ++i) approx[i] += w * (static_cast<double>(v[i]) - a[i]);
        });
      }
      s.pair.assign(static_cast<std::size_t>(2 * dim), 0.0);
      for (int i = 0; i < dim; ++i) {
        s.pair[static_cast<std::size_t>(i)] = exact[i] / s.exact[static_cast<std::size_t>(r)].sum;
        s.pair[static_cast<std::size_t>(dim + i)] = approx[i] / sums[static_cast<std::size_t>(r)];
      }
      add_pair(error.output, s.pair.data(), s.pair.data() + dim, dim);
    }
  }

  const Prepared& prepared_;
  const std::vector<Reconstruction>& reconstructions_;
  std::int64_t width_;
};

void check(const AttentionProblem& p) {
  if (p.dim <= 0 || p.q_heads <= 0 || p.tokens <= 0 || p.q_tokens < 0)
    throw Error(ErrorCode::Usage, "attention_errors: shapes must be positive");
  if (p.q_tokens > 0 && (p.q == nullptr || p.k == nullptr || p.v == nullptr))
    throw Error(ErrorCode::Usage, "attention_errors: q, k and v are needed");
  std::int64_t last = -1;
  for (std::int64_t i = 0; i < p.q_tokens; ++i) {
    const std::int64_t at = p.q_positions != nullptr ? p.q_positions[i] : p.q_start + i;
    if (at < 0 || at >= p.tokens || at <= last) {
      throw Error(ErrorCode::Usage,
                  "attention_errors: query positions must ascend and lie among the " + std::to_string(p.tokens) + " keys");
    }
    last = at;
  }
}

int tile_rows(std::int64_t tokens) { return tokens <= 8192 ? eval::kTileRows : tokens <= 32768 ? 24 : 12; }

std::vector<Tile> make_tiles(const Prepared& prepared) {
  const AttentionProblem& p = prepared.problem;
  const int rows = tile_rows(p.tokens);
  std::vector<Tile> tiles;
  for (int head = 0; head < p.q_heads; ++head) {
    for (std::int64_t first = 0; first < p.q_tokens; first += rows) {
      Tile tile{first, static_cast<int>(std::min<std::int64_t>(rows, p.q_tokens - first)), head, 0, 0};
      std::int64_t begin = p.tokens, end = 0;
      for (int r = 0; r < tile.rows; ++r) {
        const Range seen = prepared.visible(first + r);
        begin = std::min(begin, seen.begin);
        end = std::max(end, seen.end);
      }
      tile.base = begin / kPanel * kPanel;
      tile.panels = (end - tile.base + kPanel - 1) / kPanel;
      tiles.push_back(tile);
    }
  }
  return tiles;
}

/// Packs the exact sides and every distinct reconstructed one (several reconstructions may share a side).
void pack_sides(Prepared& prepared, const std::vector<Reconstruction>& reconstructions, int threads) {
  const AttentionProblem& problem = prepared.problem;
  std::vector<std::pair<const float*, bool>> sides;  // and whether it holds keys
  const auto index_of = [&sides](const float* x, bool keys) {
    const auto found = std::find(sides.begin(), sides.end(), std::pair{x, keys});
    const auto at = found - sides.begin();
    if (found == sides.end()) sides.emplace_back(x, keys);
    return static_cast<std::size_t>(at);
  };
  std::vector<std::size_t> k_at, v_at;
  for (const Reconstruction& r : reconstructions) {
    k_at.push_back(r.k != nullptr ? index_of(r.k, true) : 0);
    v_at.push_back(r.v != nullptr ? index_of(r.v, false) : 0);
  }
  prepared.packed.resize(sides.size());
  eval::parallel_for(static_cast<std::int64_t>(sides.size()) + 2, threads, [&](std::int64_t task, int) {
    if (task == 0) {
      prepared.k = eval::pack_transposed(problem.k, problem.tokens, problem.dim);
    } else if (task == 1) {
      prepared.v = eval::pack(problem.v, problem.tokens, problem.dim);
    } else {
      const auto& [x, keys] = sides[static_cast<std::size_t>(task - 2)];
      prepared.packed[static_cast<std::size_t>(task - 2)] =
          keys ? eval::pack_transposed(x, problem.tokens, problem.dim) : eval::pack(x, problem.tokens, problem.dim);
    }
  });
  for (std::size_t i = 0; i < reconstructions.size(); ++i) {
    prepared.approx_k.push_back(reconstructions[i].k != nullptr ? &prepared.packed[k_at[i]] : nullptr);
    prepared.approx_v.push_back(reconstructions[i].v != nullptr ? &prepared.packed[v_at[i]] : nullptr);
  }
}

}  // namespace

void VectorError::add(const VectorError& other) {
  vectors += other.vectors;
  nonzero += other.nonzero;
  energy += other.energy;
  error += other.error;
  cosine_sum += other.cosine_sum;
}
double VectorError::relative_mse() const { return ratio(error, energy); }
double VectorError::cosine() const { return nonzero > 0 ? cosine_sum / static_cast<double>(nonzero) : 1.0; }

VectorError vector_error(const float* x, const float* y, std::int64_t n, int dim) {
  VectorError sum;
  for (std::int64_t i = 0; i < n; ++i) add_pair(sum, x + i * dim, y + i * dim, dim);
  return sum;
}

std::int64_t ExactTokens::exact_from(std::int64_t position) const {
  std::int64_t from = position + 1;
  if (window > 0) from = std::min(from, std::max<std::int64_t>(0, position - window + 1));
  if (block > 0) from = std::min(from, (position + 1) / block * block);
  return from;
}

void AttentionError::add(const AttentionError& other) {
  queries += other.queries;
  logits += other.logits;
  logit_error += other.logit_error;
  logit_error_centred += other.logit_error_centred;
  logit_energy += other.logit_energy;
  logit_max = std::max(logit_max, other.logit_max);
  kl.insert(kl.end(), other.kl.begin(), other.kl.end());
  same_top1 += other.same_top1;
  top8 += other.top8;
  output.add(other.output);
}
double AttentionError::logit_rmse() const { return std::sqrt(share(logit_error, logits)); }
double AttentionError::logit_rmse_centred() const { return std::sqrt(share(logit_error_centred, logits)); }
double AttentionError::logit_relative_mse() const { return ratio(logit_error_centred, logit_energy); }
double AttentionError::kl_mean() const {
  double sum = 0;
  for (const float value : kl) sum += value;
  return share(sum, static_cast<std::int64_t>(kl.size()));
}
double AttentionError::kl_max() const { return kl.empty() ? 0.0 : *std::max_element(kl.begin(), kl.end()); }
double AttentionError::kl_quantile(double p) const { return quantile(kl, p); }
double AttentionError::top1_share() const { return queries > 0 ? share(static_cast<double>(same_top1), queries) : 1.0; }
double AttentionError::top8_share() const { return queries > 0 ? share(top8, queries) : 1.0; }

double quantile(std::vector<float> values, double p) {
  if (values.empty()) return std::numeric_limits<double>::quiet_NaN();
  const double rank = std::ceil(std::clamp(p, 0.0, 1.0) * static_cast<double>(values.size()));
  const auto at = values.begin() + std::max<std::ptrdiff_t>(0, static_cast<std::ptrdiff_t>(rank) - 1);
  std::nth_element(values.begin(), at, values.end());
  return *at;
}

std::vector<AttentionError> attention_errors(const AttentionProblem& problem, const std::vector<Reconstruction>& reconstructions,
                                             int threads, const std::function<bool(double)>& progress) {
  check(problem);
  std::vector<AttentionError> total(reconstructions.size());
  if (problem.q_tokens == 0 || reconstructions.empty()) return total;

  Prepared prepared{problem, {}, {}, {}, {}, {}, {}};
  const double scale = problem.sm_scale > 0 ? problem.sm_scale : 1.0 / std::sqrt(static_cast<double>(problem.dim));
  prepared.q.assign(problem.q, problem.q + problem.q_heads * problem.q_tokens * problem.dim);
  for (float& x : prepared.q) x = static_cast<float>(x * scale);
  pack_sides(prepared, reconstructions, threads);

  const std::vector<Tile> tiles = make_tiles(prepared);
  const TileRunner runner(prepared, reconstructions);
  std::vector<std::vector<float>> kl(reconstructions.size(),
                                     std::vector<float>(static_cast<std::size_t>(problem.q_heads * problem.q_tokens)));
  std::vector<std::vector<AttentionError>> parts(tiles.size(), std::vector<AttentionError>(reconstructions.size()));
  std::vector<Scratch> scratch(static_cast<std::size_t>(eval::thread_count(threads)));
  std::mutex progress_mutex;
  std::size_t done = 0;
  eval::parallel_for(static_cast<std::int64_t>(tiles.size()), threads, [&](std::int64_t t, int worker) {
    Scratch& s = scratch[static_cast<std::size_t>(worker)];
    if (s.stride == 0) {
      const std::size_t rows = static_cast<std::size_t>(tile_rows(problem.tokens));
      s.stride = prepared.k.panels() * kPanel;
      for (std::vector<float>* buffer : {&s.logits, &s.weights, &s.other}) buffer->resize(rows * static_cast<std::size_t>(s.stride));
      for (std::vector<double>* buffer : {&s.out, &s.other_out})
        buffer->resize(rows * static_cast<std::size_t>(prepared.v.panels() * kPanel));
      s.block.resize(rows * kPanel);
    }
    runner.run(tiles[static_cast<std::size_t>(t)], s, parts[static_cast<std::size_t>(t)], kl);
    if (progress) {
      const std::lock_guard lock(progress_mutex);
      if (!progress(static_cast<double>(++done) / static_cast<double>(tiles.size()))) throw Error(ErrorCode::Interrupted, "interrupted");
    }
  });
  for (const std::vector<AttentionError>& part : parts) {
    for (std::size_t i = 0; i < total.size(); ++i) total[i].add(part[i]);
  }
  for (std::size_t i = 0; i < total.size(); ++i) total[i].kl = std::move(kl[i]);
  return total;
}

}  // namespace tq4
