// See profile_check.h.
#include "cuda/profile_check.h"

#include <cmath>
#include <numeric>
#include <type_traits>

#include "cuda/profile_memory.h"
#include "tq4/attention.h"

namespace tq4::gpu {
namespace {

double relative_error(const std::vector<float>& got, const std::vector<double>& want) {
  double error = 0, norm = 0;
  for (std::size_t i = 0; i < want.size(); ++i) {
    error += (static_cast<double>(got[i]) - want[i]) * (static_cast<double>(got[i]) - want[i]);
    norm += want[i] * want[i];
  }
  return std::sqrt(error / norm);
}

/// Planes [n, heads] in host memory; empty where the codec has none.
struct Planes {
  std::vector<std::uint8_t> codes;
  std::vector<float> scale, zero;
  std::vector<std::uint8_t> signs;
  std::vector<float> residual_norm;
};

/// Their head 0, decoded to [n, D].
std::vector<float> decode_head(const DeviceCodec& codec, Side side, const Planes& planes, std::int64_t n,
                               const LayerCalibration& calibration) {
  const Codec& host = codec.host(side);
  const std::size_t rows = static_cast<std::size_t>(n), heads = static_cast<std::size_t>(codec.num_kv_heads()),
                    dim = static_cast<std::size_t>(codec.head_dim());
  const auto pick = [&](const auto& all) {
    std::remove_cvref_t<decltype(all)> own;
    const std::size_t width = all.size() / (rows * heads);
    own.reserve(rows * width);
    for (std::size_t t = 0; t < rows; ++t) {
      const auto row = all.begin() + static_cast<std::ptrdiff_t>(t * heads * width);
      own.insert(own.end(), row, row + static_cast<std::ptrdiff_t>(width));
    }
    return own;
  };
  const auto codes = pick(planes.codes), signs = pick(planes.signs);
  const auto scale = pick(planes.scale), zero = pick(planes.zero), norm = pick(planes.residual_norm);
  std::vector<float> x(rows * dim);
  Exec exec;
  exec.threads = 0;
  host.decode({codes.data(), scale.data(), zero.data(), signs.data(), norm.data()}, n, x.data(), head_transform(&calibration, side, 0, 0),
              exec);
  return x;
}

}  // namespace

double check_decode(const DeviceCodec& codec, const DecodeParams& p, const std::vector<std::int32_t>& table, std::int32_t length,
                    const LayerCalibration& calibration) {
  const PageLayout& l = p.cache.layout;
  const auto dim = static_cast<std::size_t>(l.head_dim), n = static_cast<std::size_t>(length),
             heads = static_cast<std::size_t>(l.num_kv_heads);
  const std::size_t group = static_cast<std::size_t>(p.num_q_heads) / heads, q_len = static_cast<std::size_t>(p.q_len),
                    q_heads = static_cast<std::size_t>(p.num_q_heads);
  // Copy the sequence's pages together and read them as a cache of their own.
  const std::size_t blocks = (n + static_cast<std::size_t>(l.block_size) - 1) / static_cast<std::size_t>(l.block_size);
  std::vector<std::uint8_t> pages;
  pages.reserve(blocks * static_cast<std::size_t>(l.block_stride));
  for (std::size_t b = 0; b < blocks; ++b) {
    const auto page = to_host<std::uint8_t>(p.cache.data + table[b] * l.block_stride, static_cast<std::size_t>(l.block_stride));
    pages.insert(pages.end(), page.begin(), page.end());
  }
  std::vector<std::int64_t> slots(n);
  std::iota(slots.begin(), slots.end(), 0);
  Planes planes[2];
  for (const Side side : {Side::K, Side::V}) {
    Planes& x = planes[static_cast<std::size_t>(side)];
    x.codes.resize(n * heads * codec.host(side).code_bytes());
    x.scale.resize(n * heads);
    x.zero.resize(n * heads);
  }
  const auto out_of = [](Planes& x) { return EncodedOut{x.codes.data(), x.scale.data(), x.zero.data(), nullptr, nullptr}; };
  read_pages(l, pages.data(), static_cast<std::int64_t>(blocks), slots.data(), length, out_of(planes[0]), out_of(planes[1]));
  std::vector<float> values[2];
  for (const Side side : {Side::K, Side::V}) {
    values[static_cast<std::size_t>(side)] = decode_head(codec, side, planes[static_cast<std::size_t>(side)], length, calibration);
    if (p.exact.sinks > 0 || p.exact.window > 0) {  // these come from the exact buffers, sequence 0 and head 0
      const auto sinks = static_cast<std::size_t>(p.exact.sinks), window = static_cast<std::size_t>(p.exact.window);
      const bool key = side == Side::K;
      const auto s = to_host<std::uint16_t>(key ? p.exact.sink_k : p.exact.sink_v, sinks * dim),
                 w = to_host<std::uint16_t>(key ? p.exact.window_k : p.exact.window_v, window * dim);
      for (std::size_t t = 0; t < n; ++t) {
        const std::uint16_t* row = t < sinks ? s.data() + t * dim : t + window >= n ? w.data() + t % window * dim : nullptr;
        if (row == nullptr) continue;
        std::vector<float> y(dim);
        to_float(row, DType::F16, dim, y.data());
        const HeadTransform transform = head_transform(&calibration, side, 0, static_cast<std::int64_t>(t));
        float* to = values[static_cast<std::size_t>(side)].data() + t * dim;
        for (std::size_t i = 0; i < dim; ++i) {  // x = inverse y + centre
          double sum = transform.centre ? static_cast<double>(transform.centre[i]) : 0.0;
          for (std::size_t j = 0; j < dim; ++j) {
            sum +=
                static_cast<double>(transform.inverse ? transform.inverse[i * dim + j] : codec.host(side).rotation().matrix[j * dim + i]) *
                static_cast<double>(y[j]);
          }
          to[i] = static_cast<float>(sum);
        }
      }
    }
  }
  const auto raw_q = to_host<std::uint16_t>(p.q, q_len * q_heads * dim), raw_out = to_host<std::uint16_t>(p.out, raw_q.size());
  std::vector<float> q(q_len * group * dim), got(q.size());
  for (std::size_t i = 0; i < q_len; ++i) {
    to_float(raw_q.data() + i * q_heads * dim, p.q_dtype, group * dim, q.data() + i * group * dim);
    to_float(raw_out.data() + i * q_heads * dim, p.q_dtype, group * dim, got.data() + i * group * dim);
  }
  std::vector<double> want(q.size());
  reference_attention(q.data(), values[0].data(), values[1].data(), p.q_len, length, static_cast<int>(group), 1, l.head_dim, {},
                      want.data(), nullptr);
  return relative_error(got, want);
}

double check_prefill(const DeviceCodec& codec, const PrefillParams& p, std::int64_t length, const LayerCalibration& calibration) {
  const auto values = [&](Side side, const EncodedIn& in) {
    const Codec& host = codec.host(side);
    const std::size_t rows = static_cast<std::size_t>(length) * static_cast<std::size_t>(codec.num_kv_heads());
    const std::size_t sign_bytes = host.has_signs() ? static_cast<std::size_t>(codec.head_dim()) / 8 : 0;
    const Planes planes{to_host<std::uint8_t>(in.codes, rows * host.code_bytes()), to_host<float>(in.scale, rows * host.has_scale()),
                        to_host<float>(in.zero, rows * host.has_zero()), to_host<std::uint8_t>(in.signs, rows * sign_bytes),
                        to_host<float>(in.residual_norm, rows * host.has_signs())};
    return decode_head(codec, side, planes, length, calibration);
  };
  const std::vector<float> k = values(Side::K, p.k_planes), v = values(Side::V, p.v_planes);
  const auto dim = static_cast<std::size_t>(codec.head_dim()), group = static_cast<std::size_t>(p.num_q_heads / codec.num_kv_heads());
  const std::size_t row = static_cast<std::size_t>(length - 1) * static_cast<std::size_t>(p.num_q_heads) * dim;
  const auto floats = [&](const void* from) {
    const auto bits = to_host<std::uint16_t>(static_cast<const std::uint16_t*>(from) + row, group * dim);
    std::vector<float> x(bits.size());
    to_float(bits.data(), p.dtype, bits.size(), x.data());
    return x;
  };
  const std::vector<float> q = floats(p.q), got = floats(p.out);
  std::vector<double> want(q.size());
  reference_attention(q.data(), k.data(), v.data(), 1, length, static_cast<int>(group), 1, codec.head_dim(), {}, want.data(), nullptr);
  return relative_error(got, want);
}

}  // namespace tq4::gpu
