// Encoding and decoding: rows are cut into blocks that fit a cache, and every block goes through conversion, the check for NaN,
// centring, transform and quantizer while it is warm. What a block gives depends on its rows alone, so neither the number of threads
// nor the block size shows in the bytes.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "cpu/centre.h"
#include "cpu/codec_impl.h"
#include "cpu/scalar.h"
#include "cpu/thread_pool.h"
#include "tq4/codec.h"
#include "tq4/error.h"

namespace tq4 {
namespace {

using cpu::Kernels;
using cpu::TransformKind;
using cpu::TransformTables;

/// Rows of a block. A dense product wants many rows for the panel of the matrix it keeps in the first-level cache, in multiples of its tile
/// (12 or 6 rows); encoding with butterflies works a few rows at a time, and a long block only spreads the cost of beginning one;
/// everything else is quickest when a block stays in that cache itself (16 KiB of fp32), in multiples of a batch of 16.
std::int64_t block_rows(TransformKind kind, int dim, bool encode) {
  if (kind == TransformKind::Dense) return std::max<std::int64_t>(1, 12288 / dim / 48) * 48;
  if (kind == TransformKind::Hadamard && encode) return std::max<std::int64_t>(1, 131072 / dim / 16) * 16;
  return std::max<std::int64_t>(1, 4096 / dim / 16) * 16;
}

const Kernels& kernels_for(const Exec& exec) { return exec.scalar ? cpu::scalar_kernels() : cpu::simd_kernels(); }

/// Rows a thread takes at a time, or a few more, so that threads seldom write to the same cache line.
constexpr std::int64_t kRowsAtOnce = 768;

/// Calls body(first, count) for every block of rows, on the threads asked for; make_body() makes one body a thread.
template <class MakeBody>
void for_blocks(const Exec& exec, std::int64_t n, std::int64_t rows, const MakeBody& make_body) {
  const std::int64_t span = rows * ((kRowsAtOnce + rows - 1) / rows);
  cpu::parallel_for(exec.threads, (n + span - 1) / span, [&] {
    return [&, body = make_body()](std::int64_t i) mutable {
      const std::int64_t end = std::min(n, (i + 1) * span);
      for (std::int64_t first = i * span; first < end; first += rows) body(first, std::min(rows, end - first));
    };
  });
}

/// Uninitialised fp32 scratch of one thread, aligned to cache lines: vectors that straddle two cost the butterflies a tenth of their time.
class Scratch {
 public:
  explicit Scratch(std::int64_t count) : values_(count > 0 ? new Line[static_cast<std::size_t>((count + 15) / 16)] : nullptr) {}
  float* data() const { return values_ ? values_[0].value : nullptr; }

 private:
  struct alignas(64) Line {
    float value[16];
  };
  std::unique_ptr<Line[]> values_;
};

bool all_finite(const float* v, std::int64_t count) {
  unsigned bad = 0;  // no early end: the compiler makes vectors of this
  for (std::int64_t i = 0; i < count; ++i) bad |= std::isfinite(v[i]) ? 0u : 1u;
  return bad == 0;
}

std::vector<float> transposed(const float* m, int dim) {
  const auto d = static_cast<std::size_t>(dim);
  std::vector<float> t(d * d);
  for (std::size_t i = 0; i < d; ++i) {
    for (std::size_t j = 0; j < d; ++j) t[j * d + i] = m[i * d + j];
  }
  return t;
}

/// The codec's rotation, or the matrices of the call with their transposes (kept in `storage`).
TransformTables forward_tables(const TransformTables& own, const HeadTransform& transform, std::vector<float>& storage) {
  if (transform.forward == nullptr) return own;
  storage = transposed(transform.forward, own.dim);
  TransformTables t;
  t.kind = TransformKind::Dense;
  t.dim = own.dim;
  t.forward = transform.forward;
  t.forward_t = storage.data();
  return t;
}

/// Likewise for the way back; forward without inverse is taken to be orthogonal.
TransformTables inverse_tables(const TransformTables& own, const HeadTransform& transform, std::vector<float>& storage) {
  if (transform.inverse == nullptr && transform.forward == nullptr) return own;
  TransformTables t;
  t.kind = TransformKind::Dense;
  t.dim = own.dim;
  if (transform.inverse != nullptr) {
    storage = transposed(transform.inverse, own.dim);
    t.inverse = transform.inverse;
    t.inverse_t = storage.data();
  } else {
    storage = transposed(transform.forward, own.dim);
    t.inverse = storage.data();
    t.inverse_t = transform.forward;
  }
  return t;
}

/// turboquant-vllm stores the norm of the vector before its rotation, summed as PyTorch does on the CPU: eight partial sums, then those in
/// order. It is |y| to the last bit or two; taking it makes pages of that plugin equal byte for byte.
float peer_norm(const float* x, int dim) {
  float p[8] = {};
  for (int j = 0; j < dim; ++j) p[j & 7] += x[j] * x[j];
  float sum = 0.0f;
  for (const float v : p) sum += v;
  return std::sqrt(sum);
}

template <class Planes>
void check_planes(const Codec& codec, const Planes& planes, std::int64_t n, const void* values) {
  if (n < 0) throw Error(ErrorCode::Usage, "the number of vectors is negative");
  if (n == 0) return;
  const bool complete = values != nullptr && planes.codes != nullptr && (!codec.has_scale() || planes.scale != nullptr) &&
                        (!codec.has_zero() || planes.zero != nullptr) &&
                        (!codec.has_signs() || (planes.signs != nullptr && planes.residual_norm != nullptr));
  if (!complete) throw Error(ErrorCode::Usage, "a plane that the codec has is a null pointer");
}

/// The lowest offending element of any block, whatever the order in which threads meet them.
class FirstFault {
 public:
  void report(std::int64_t element) {
    std::int64_t seen = lowest_.load();
    while (element < seen && !lowest_.compare_exchange_weak(seen, element)) {
    }
  }
  bool any() const { return lowest_.load() != kNone; }
  std::int64_t element() const { return lowest_.load(); }

 private:
  static constexpr std::int64_t kNone = std::numeric_limits<std::int64_t>::max();
  std::atomic<std::int64_t> lowest_{kNone};
};

}  // namespace

void Codec::encode(const void* x, DType dtype, std::int64_t n, const EncodedOut& out, const HeadTransform& transform,
                   const Exec& exec) const {
  if (dtype != DType::F16 && dtype != DType::BF16 && dtype != DType::F32) {
    throw Error(ErrorCode::Usage, "vectors must be float16, bfloat16 or float32, not " + std::string(dtype_name(dtype)));
  }
  check_planes(*this, out, n, x);
  if (n == 0) return;
  const int dim = impl_->dim;
  const cpu::CodeTables& codes = impl_->codes;
  const Kernels& kernels = kernels_for(exec);
  std::vector<float> transposed_storage;
  const TransformTables forward = forward_tables(impl_->transform, transform, transposed_storage);
  const cpu::Centre centre(transform, dim);
  if (transform.feedback != nullptr && (impl_->spec.kind != CodeKind::Mse || impl_->spec.norm_correction || transform.forward == nullptr)) {
    throw Error(ErrorCode::Unsupported, "coding with feedback needs an Mse codec without norm correction and a calibrated transform");
  }
  std::vector<float> feedback_storage;
  if (transform.feedback != nullptr) feedback_storage = transposed(transform.feedback, dim);
  const cpu::FeedbackTables feedback{transform.feedback, feedback_storage.data(), transform.feedback_gain};
  const bool as_peer = impl_->spec.kind == CodeKind::Mse && impl_->spec.codebook == CodebookKind::TurboquantVllm &&
                       impl_->spec.scale_rule == ScaleRule::Norm && transform.forward == nullptr;
  const std::size_t element = dtype_size(dtype);
  FirstFault nonfinite, overflow;

  const std::int64_t block = block_rows(forward.kind, dim, true);
  // fp32 rows that nothing changes before the transform are read where they lie.
  const bool in_place = dtype == DType::F32 && centre.none() && reinterpret_cast<std::uintptr_t>(x) % alignof(float) == 0;
  // A codebook's scale comes from the row's norm, which is not finite where a value is not: such codecs search the input for NaN and
  // infinity only after a scale has told that there is something to find. The others look first.
  const bool scale_tells = has_scale() && !has_zero();

  /// False where a scale is not finite. `check`: look for NaN and infinity first, and report them or replace them.
  const auto encode_block = [&](float* copy, float* transformed, std::int64_t first, std::int64_t rows, bool check) {
    const auto values = static_cast<std::size_t>(rows) * static_cast<std::size_t>(dim);
    const unsigned char* source =
        static_cast<const unsigned char*>(x) + static_cast<std::size_t>(first) * static_cast<std::size_t>(dim) * element;
    const float* a = copy;
    if (in_place) {
      a = reinterpret_cast<const float*>(source);
    } else {
      kernels.load(source, dtype, values, copy);
    }
    const std::int64_t bad = check ? kernels.find_nonfinite(a, values) : -1;
    if (bad >= 0 && exec.nonfinite == NonFinite::Refuse) {
      nonfinite.report(first * dim + bad);
      return true;
    }
    if (bad >= 0) {
      std::transform(a, a + values, copy, [](float v) { return std::isfinite(v) ? v : 0.0f; });
      a = copy;
    }
    if (!centre.none()) {
      std::vector<float> scratch(static_cast<std::size_t>(dim));
      for (std::int64_t r = 0; r < rows; ++r) {
        const float* c = centre.at(first + r, scratch.data());
        float* row = copy + r * dim;
        for (int j = 0; j < dim; ++j) row[j] -= c[j];
      }
    }
    const EncodedOut planes = cpu::planes_at(out, codes, first);
    if (feedback.matrix != nullptr) {
      kernels.transform(forward, a, rows, transformed);
      kernels.encode_feedback(codes, feedback, transformed, rows, planes);
    } else if (forward.kind != TransformKind::None) {
      kernels.transform_encode(forward, codes, a, rows, transformed, planes);
    } else {
      kernels.encode(codes, a, rows, planes);
    }
    if (as_peer) {
      for (std::int64_t r = 0; r < rows; ++r) {
        planes.scale[r] = cpu::round_scale(peer_norm(a + r * dim, dim), codes.scale_dtype);
      }
    }
    if (!has_scale() || (all_finite(planes.scale, rows) && (!has_signs() || all_finite(planes.residual_norm, rows)))) return true;
    for (std::int64_t r = 0; r < rows && check; ++r) {
      if (!std::isfinite(planes.scale[r]) || (has_signs() && !std::isfinite(planes.residual_norm[r]))) {
        overflow.report(first + r);
        break;
      }
    }
    return false;
  };
  for_blocks(exec, n, block, [&] {
    // Sized for what is needed: the copy also when NonFinite::Zero may have to change values.
    const bool copies = !in_place || exec.nonfinite == NonFinite::Zero;
    const bool transforms = forward.kind != TransformKind::None;
    return
        [&, copy = Scratch(copies ? block * dim : 0),
         transformed = Scratch(transforms ? cpu::scratch_rows(forward.kind, dim, block) * dim : 0)](std::int64_t first, std::int64_t rows) {
          const bool finite = encode_block(copy.data(), transformed.data(), first, rows, !scale_tells);
          if (!finite && scale_tells) encode_block(copy.data(), transformed.data(), first, rows, true);
        };
  });

  if (nonfinite.any()) {
    float value = 0;
    const std::int64_t at = nonfinite.element();
    to_float(static_cast<const unsigned char*>(x) + static_cast<std::size_t>(at) * element, dtype, 1, &value);
    throw Error(ErrorCode::BadInput, std::string(std::isnan(value) ? "NaN" : "infinity") + " at vector " + std::to_string(at / dim) +
                                         ", coordinate " + std::to_string(at % dim));
  }
  if (overflow.any()) {
    throw Error(ErrorCode::BadInput, "vector " + std::to_string(overflow.element()) + " is too long: its squared norm overflows float32");
  }
}

void Codec::decode(const EncodedIn& in, std::int64_t n, float* x, const HeadTransform& transform, const Exec& exec) const {
  check_planes(*this, in, n, x);
  if (n == 0) return;
  const int dim = impl_->dim;
  const Kernels& kernels = kernels_for(exec);
  std::vector<float> transposed_storage;
  const TransformTables inverse = inverse_tables(impl_->transform, transform, transposed_storage);
  const cpu::Centre centre(transform, dim);

  const std::int64_t block = block_rows(inverse.kind, dim, false);
  for_blocks(exec, n, block, [&] {
    return [&, y = Scratch(inverse.kind == TransformKind::None ? 0 : block * dim)](std::int64_t first, std::int64_t rows) {
      float* to = x + first * dim;
      const EncodedIn planes = cpu::planes_at(in, impl_->codes, first);
      if (inverse.kind == TransformKind::None) {
        kernels.decode(impl_->codes, planes, rows, to);
      } else {
        kernels.decode(impl_->codes, planes, rows, y.data());
        kernels.inverse_transform(inverse, y.data(), rows, to);
      }
      if (centre.none()) return;
      std::vector<float> scratch(static_cast<std::size_t>(dim));
      for (std::int64_t r = 0; r < rows; ++r, to += dim) {
        const float* c = centre.at(first + r, scratch.data());
        for (int j = 0; j < dim; ++j) to[j] += c[j];
      }
    };
  });
}

void Codec::decode_rotated(const EncodedIn& in, std::int64_t n, float* y, const Exec& exec) const {
  check_planes(*this, in, n, y);
  const Kernels& kernels = kernels_for(exec);
  for_blocks(exec, n, block_rows(TransformKind::Dense, impl_->dim, false), [&] {
    return [&](std::int64_t first, std::int64_t rows) {
      kernels.decode(impl_->codes, cpu::planes_at(in, impl_->codes, first), rows, y + first * impl_->dim);
    };
  });
}

}  // namespace tq4
