// See profile_source.h.
#include "cuda/profile_source.h"

#include <numeric>
#include <random>

#include "cuda/profile_kernels.h"
#include "tq4/rotation.h"

namespace tq4::gpu {
namespace {

constexpr const char* kWhere = "profile";

/// Orthogonal matrices a head and centres of half the data's deviation.
LayerCalibration made_up_calibration(const ProfileShape& s) {
  LayerCalibration c;
  c.num_kv_heads = s.num_kv_heads;
  c.head_dim = s.head_dim;
  c.rope_theta = 10000;
  c.rope_dim = s.head_dim;
  std::mt19937 random(5);
  std::normal_distribution<float> normal(0.0f, 0.5f);
  const auto dim = static_cast<std::size_t>(s.head_dim);
  for (SideCalibration* side : {&c.k, &c.v}) {
    for (int h = 0; s.calibrated && h < s.num_kv_heads; ++h) {
      const Rotation r = make_rotation(RotationKind::Haar, s.head_dim, static_cast<std::uint64_t>(h) + (side == &c.k ? 0 : 1000));
      for (std::size_t i = 0; i < dim; ++i) {
        for (std::size_t j = 0; j < dim; ++j) {
          side->forward.push_back(r.matrix[i * dim + j]);
          side->inverse.push_back(r.matrix[j * dim + i]);
        }
      }
      for (std::size_t j = 0; j < dim; ++j) side->centre.push_back(normal(random));
    }
  }
  for (std::size_t i = 0; s.rope && i < dim * static_cast<std::size_t>(s.num_kv_heads); ++i) c.k.rope_mu.push_back(normal(random));
  return c;
}

}  // namespace

ProfileSource::ProfileSource(const ProfileShape& shape, const ProfileOptions& options)
    : shape_(shape),
      data_(options.data),
      calibration_(data_ != nullptr && data_->calibration != nullptr ? *data_->calibration : made_up_calibration(shape)) {
  if (data_ == nullptr) return;
  const std::size_t row = static_cast<std::size_t>(shape.num_kv_heads * shape.head_dim), rows = static_cast<std::size_t>(data_->tokens);
  require(data_->tokens > 0 && data_->k.size() == rows * row && data_->v.size() == rows * row,
          "the data's keys and values are not [tokens, num_kv_heads, head_dim] of the shape", kWhere);
  require(data_->q.size() == static_cast<std::size_t>(data_->q_tokens * shape.num_q_heads * shape.head_dim),
          "the data's queries are not [q_tokens, num_q_heads, head_dim] of the shape", kWhere);
  k_ = Buffer::of(data_->k);
  v_ = Buffer::of(data_->v);
}

void ProfileSource::keys_or_values(const DeviceCodec& codec, Side side, std::uint16_t* to, std::int64_t first, std::int64_t n,
                                   std::uint64_t seed) const {
  const std::int64_t row = static_cast<std::int64_t>(shape_.num_kv_heads) * shape_.head_dim;
  if (data_ == nullptr) {
    fill_gaussian(to, n * row, seed, nullptr);
    // About the centre, as calibrated data lie: about 0 an output would be the small difference of the centre and the rotated sum that cancels
    // it, and the check would show the rounding of both.
    const float* centre = side == Side::K ? codec.k().centre : codec.v().centre;
    if (centre != nullptr) add_rows(to, n * row, centre, row, nullptr);
    return;
  }
  const auto* from = (side == Side::K ? k_ : v_)->as<std::uint16_t>();
  for (std::int64_t done = 0; done < n;) {
    const std::int64_t at = (first + done) % data_->tokens, here = std::min(n - done, data_->tokens - at);
    check(cudaMemcpyAsync(to + done * row, from + at * row, static_cast<std::size_t>(here * row) * 2, cudaMemcpyDeviceToDevice, nullptr),
          kWhere);
    done += here;
  }
}

std::vector<std::uint16_t> ProfileSource::queries(std::int64_t n, std::uint64_t seed) const {
  const std::size_t row = static_cast<std::size_t>(shape_.num_q_heads * shape_.head_dim), count = static_cast<std::size_t>(n) * row;
  std::vector<float> values(count);
  if (data_ != nullptr && data_->q_tokens > 0) {
    for (std::size_t i = 0; i < count; ++i) values[i] = half_to_float(data_->q[i % data_->q.size()]);
  } else {
    std::mt19937 random(static_cast<unsigned>(seed));
    std::normal_distribution<float> normal;
    for (float& f : values) f = normal(random);
  }
  std::vector<std::uint16_t> bits(count);
  from_float(values.data(), count, shape_.dtype, bits.data());
  return bits;
}

void ProfileSource::fill_cache(const DeviceCodec& codec, const PagedCache& cache, std::uint64_t seed) const {
  const PageLayout& l = cache.layout;
  const std::int64_t slots = cache.num_blocks * l.block_size, chunk = std::min<std::int64_t>(slots, 32768);
  const std::size_t elements = static_cast<std::size_t>(chunk * l.num_kv_heads * l.head_dim);
  const Buffer k(elements * 2), v(elements * 2);
  std::vector<std::int64_t> positions(static_cast<std::size_t>(slots));
  std::iota(positions.begin(), positions.end(), 0);
  const BufferPtr slot_mapping = Buffer::of(positions);
  for (std::int64_t first = 0; first < slots; first += chunk) {
    const std::int64_t n = std::min(chunk, slots - first);
    keys_or_values(codec, Side::K, k.as<std::uint16_t>(), first, n, seed * 1000003 + static_cast<std::uint64_t>(2 * first));
    keys_or_values(codec, Side::V, v.as<std::uint16_t>(), first, n, seed * 1000003 + static_cast<std::uint64_t>(2 * first + 1));
    StoreParams p;
    p.k = k.as<void>();
    p.v = v.as<void>();
    p.n = n;
    p.slot_mapping = slot_mapping->as<std::int64_t>() + first;
    p.positions = p.slot_mapping;
    p.cache = cache;
    store(codec, p, nullptr);
  }
  check(cudaDeviceSynchronize(), kWhere);
}

}  // namespace tq4::gpu
