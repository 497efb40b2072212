// See decode_harness.h.
#include "gpu/decode_harness.h"

#include <algorithm>

#include "tq4/calibration.h"

namespace tq4::gpu {

DecodeProblem::DecodeProblem(const DecodeCase& c, unsigned seed) : c_(c), spec_(spec_from_name(c.spec)), lengths_(c.lengths) {
  Random random(seed);
  if (c.rotation) spec_.k.rotation = spec_.v.rotation = *c.rotation;
  calibration_ = made_up_calibration(spec_, c.dim, c.kv_heads, c.calibration, random);
  codec_ = std::make_unique<DeviceCodec>(spec_, c.dim, c.kv_heads, &calibration_);
  layout_ = c.padded && c.kind == LayoutKind::TurboquantVllm ? padded_turboquant_vllm_layout(spec_, c.kv_heads, c.dim, c.block_size)
                                                             : make_layout(c.kind, spec_, c.kv_heads, c.dim, c.block_size);
  if (c.padded && c.kind != LayoutKind::TurboquantVllm) layout_.block_stride += 512;
  if (c.swapped) {
    layout_.token_stride = layout_.head_stride;
    layout_.head_stride = layout_.token_stride * c.block_size;
  }

  // Pages in random order, K and V by our own store.
  std::int64_t tokens = 0, pages = 0, longest = 1;
  for (const int n : lengths_) {
    first_token_.push_back(tokens);
    tokens += n;
    pages += (n + c.block_size - 1) / c.block_size;
    longest = std::max<std::int64_t>(longest, n);
  }
  num_blocks_ = pages + 3;
  std::vector<std::int32_t> order(static_cast<std::size_t>(num_blocks_));
  for (std::size_t i = 0; i < order.size(); ++i) order[i] = static_cast<std::int32_t>(i);
  std::shuffle(order.begin(), order.end(), random);
  const std::int64_t table_stride = (longest + c.block_size - 1) / c.block_size + 2;
  std::vector<std::int32_t> table(lengths_.size() * static_cast<std::size_t>(table_stride), -1);
  std::vector<std::int64_t> slot_mapping, positions;
  std::size_t next = 0;
  for (std::size_t s = 0; s < lengths_.size(); ++s) {
    slots_.emplace_back();
    for (int p = 0; p < lengths_[s]; ++p) {
      if (p % c.block_size == 0)
        table[s * static_cast<std::size_t>(table_stride) + static_cast<std::size_t>(p / c.block_size)] = order[next++];
      const std::int64_t page = table[s * static_cast<std::size_t>(table_stride) + static_cast<std::size_t>(p / c.block_size)];
      slots_.back().push_back(page * c.block_size + p % c.block_size);
      slot_mapping.push_back(slots_.back().back());
      positions.push_back(p);
    }
  }
  const auto dim = static_cast<std::size_t>(c.dim);
  const std::size_t values = static_cast<std::size_t>(tokens) * static_cast<std::size_t>(c.kv_heads) * dim;
  k_ = gaussian(values, DType::F16, random);
  v_ = gaussian(values, DType::F16, random);
  if (c.key_mean != 0) {
    for (float& f : k_.floats) f += c.key_mean;
    from_float(k_.floats.data(), values, DType::F16, k_.bytes.data());
    to_float(k_.bytes.data(), DType::F16, values, k_.floats.data());
  }
  cache_ = std::make_unique<Device<std::uint8_t>>(static_cast<std::size_t>(layout_.block_stride * num_blocks_));
  cache_->fill(0xff);  // slots nobody wrote hold NaN scales: they must not show
  const PagedCache cache{layout_, cache_->get(), num_blocks_};
  if (tokens > 0) {
    const Device<std::uint8_t> dk(k_.bytes), dv(v_.bytes);
    const Device<std::int64_t> ds(slot_mapping), dp(positions);
    StoreParams store_params;
    store_params.k = dk.get();
    store_params.v = dv.get();
    store_params.n = tokens;
    store_params.slot_mapping = ds.get();
    store_params.positions = dp.get();
    store_params.cache = cache;
    store(*codec_, store_params, nullptr);
    synchronize();
  }

  const std::size_t rows = lengths_.size() * static_cast<std::size_t>(c.q_len) * static_cast<std::size_t>(c.q_heads);
  q_ = gaussian(rows * dim, c.dtype, random, 1.5f);
  device_q_ = std::make_unique<Device<std::uint8_t>>(q_.bytes);
  out_ = std::make_unique<Device<std::uint8_t>>(q_.bytes.size());
  lse_ = std::make_unique<Device<float>>(rows);
  table_ = std::make_unique<Device<std::int32_t>>(table);
  seq_lens_ = std::make_unique<Device<std::int32_t>>(std::vector<std::int32_t>(lengths_.begin(), lengths_.end()));
  std::uniform_real_distribution<float> uniform(0.0f, 1.0f);
  for (int h = 0; h < c.q_heads; ++h) {
    slopes_.push_back(0.05f * uniform(random));
    sinks_.push_back(4.0f * uniform(random));
  }
  params_.q = device_q_->get();
  params_.q_dtype = c.dtype;
  params_.out = out_->get();
  params_.lse = lse_->get();
  params_.num_seqs = static_cast<int>(lengths_.size());
  params_.q_len = c.q_len;
  params_.num_q_heads = c.q_heads;
  params_.cache = cache;
  params_.block_table = table_->get();
  params_.block_table_stride = table_stride;
  params_.seq_lens = seq_lens_->get();
  params_.max_seq_len = longest;
  params_.window = c.window;
  params_.soft_cap = c.soft_cap;
  params_.q_rotated = c.q_rotated;
  params_.out_rotated = c.out_rotated;
  params_.general_path = c.general_path;
  if (c.alibi) {
    device_slopes_ = std::make_unique<Device<float>>(slopes_);
    params_.alibi_slopes = device_slopes_->get();
  }
  if (c.sink_logits) {
    device_sinks_ = std::make_unique<Device<float>>(sinks_);
    params_.sink_logits = device_sinks_->get();
  }
  fill_exact();
  params_.workspace_bytes = decode_workspace_bytes(*codec_, params_);
  workspace_ = std::make_unique<Device<std::uint8_t>>(params_.workspace_bytes);
  workspace_->fill(0);
  params_.workspace = workspace_->get();
}

void DecodeProblem::fill_exact() {
  if (c_.exact_sinks == 0 && c_.exact_window == 0) return;
  const auto dim = static_cast<std::size_t>(c_.dim), heads = static_cast<std::size_t>(c_.kv_heads);
  const auto sinks = static_cast<std::size_t>(c_.exact_sinks), window = static_cast<std::size_t>(c_.exact_window);
  // What no token fills is NaN: it must not be read.
  std::vector<std::uint16_t> sk(lengths_.size() * heads * sinks * dim, 0x7fff), sv = sk, wk(lengths_.size() * heads * window * dim, 0x7fff),
                                                                                wv = wk;
  const auto* k = reinterpret_cast<const std::uint16_t*>(k_.bytes.data());
  const auto* v = reinterpret_cast<const std::uint16_t*>(v_.bytes.data());
  for (std::size_t s = 0; s < lengths_.size(); ++s) {
    const int length = lengths_[s];
    for (int p = 0; p < length; ++p) {
      for (std::size_t h = 0; h < heads; ++h) {
        const std::size_t from = ((static_cast<std::size_t>(first_token_[s]) + static_cast<std::size_t>(p)) * heads + h) * dim;
        if (p < c_.exact_sinks) {
          const std::size_t to = ((s * heads + h) * sinks + static_cast<std::size_t>(p)) * dim;
          exact_row(Side::K, h, k + from, sk.data() + to);
          exact_row(Side::V, h, v + from, sv.data() + to);
        }
        if (p >= length - c_.exact_window) {
          const std::size_t to = ((s * heads + h) * window + static_cast<std::size_t>(p) % window) * dim;
          exact_row(Side::K, h, k + from, wk.data() + to);
          exact_row(Side::V, h, v + from, wv.data() + to);
        }
      }
    }
  }
  sink_k_ = std::make_unique<Device<std::uint16_t>>(sk);
  sink_v_ = std::make_unique<Device<std::uint16_t>>(sv);
  window_k_ = std::make_unique<Device<std::uint16_t>>(wk);
  window_v_ = std::make_unique<Device<std::uint16_t>>(wv);
  params_.exact = {c_.exact_sinks, c_.exact_window, sink_k_->get(), sink_v_->get(), window_k_->get(), window_v_->get(), c_.exact_rotated};
}

void DecodeProblem::exact_row(Side side, std::size_t head, const std::uint16_t* from, std::uint16_t* to) const {
  const auto dim = static_cast<std::size_t>(c_.dim);
  if (!c_.exact_rotated) {
    std::copy_n(from, dim, to);
    return;
  }
  const SideCalibration& calibration = side == Side::K ? calibration_.k : calibration_.v;
  const float* forward =
      calibration.forward.empty() ? codec_->host(side).rotation().matrix.data() : calibration.forward.data() + head * dim * dim;
  for (std::size_t i = 0; i < dim; ++i) {
    double sum = 0;
    for (std::size_t j = 0; j < dim; ++j) {
      const double centre = calibration.centre.empty() ? 0.0 : static_cast<double>(calibration.centre[head * dim + j]);
      sum += static_cast<double>(forward[i * dim + j]) * (static_cast<double>(half_to_float(from[j])) - centre);
    }
    to[i] = float_to_half(static_cast<float>(sum));
  }
}

void DecodeProblem::set_lengths(const std::vector<int>& lengths) {
  lengths_ = lengths;
  seq_lens_->upload(std::vector<std::int32_t>(lengths.begin(), lengths.end()));
}

void DecodeProblem::run(Stream stream) {
  out_->fill(0xff);
  lse_->fill(0xff);
  decode(*codec_, params_, stream);
  synchronize();
}

std::vector<float> DecodeProblem::query_in_original_space() const {
  if (!c_.q_rotated) return q_.floats;
  // q_rot = inverse^T q, so q = forward^T q_rot.
  const auto dim = static_cast<std::size_t>(c_.dim), group = static_cast<std::size_t>(c_.q_heads / c_.kv_heads);
  std::vector<float> q(q_.floats.size());
  for (std::size_t row = 0; row < q.size() / dim; ++row) {
    const std::size_t head = row % static_cast<std::size_t>(c_.q_heads) / group;
    const float* forward =
        calibration_.k.forward.empty() ? codec_->host(Side::K).rotation().matrix.data() : calibration_.k.forward.data() + head * dim * dim;
    for (std::size_t j = 0; j < dim; ++j) {
      double sum = 0;
      for (std::size_t i = 0; i < dim; ++i)
        sum += static_cast<double>(forward[i * dim + j]) * static_cast<double>(q_.floats[row * dim + i]);
      q[row * dim + j] = static_cast<float>(sum);
    }
  }
  return q;
}

std::vector<float> DecodeProblem::values(std::size_t s, Side side, bool rotated) const {
  const auto dim = static_cast<std::size_t>(c_.dim), heads = static_cast<std::size_t>(c_.kv_heads),
             n = static_cast<std::size_t>(lengths_[s]);
  std::vector<float> result(heads * n * dim);
  if (n == 0) return result;
  const std::vector<std::uint8_t> pages = cache_->host();
  struct Planes {
    std::vector<std::uint8_t> codes;
    std::vector<float> scale, zero;
    EncodedOut out() { return {codes.data(), scale.data(), zero.data(), nullptr, nullptr}; }
  } planes[2];
  for (const Side each : {Side::K, Side::V}) {
    planes[static_cast<std::size_t>(each)] = {std::vector<std::uint8_t>(n * heads * codec_->host(each).code_bytes()),
                                              std::vector<float>(n * heads), std::vector<float>(n * heads)};
  }
  read_pages(layout_, pages.data(), num_blocks_, slots_[s].data(), static_cast<std::int64_t>(n), planes[0].out(), planes[1].out());
  const Codec& codec = codec_->host(side);
  const Planes& p = planes[static_cast<std::size_t>(side)];
  for (std::size_t h = 0; h < heads; ++h) {
    std::vector<std::uint8_t> codes;
    std::vector<float> scale, zero;
    for (std::size_t t = 0; t < n; ++t) {
      const auto row = p.codes.begin() + static_cast<std::ptrdiff_t>((t * heads + h) * codec.code_bytes());
      codes.insert(codes.end(), row, row + static_cast<std::ptrdiff_t>(codec.code_bytes()));
      scale.push_back(p.scale[t * heads + h]);
      zero.push_back(p.zero[t * heads + h]);
    }
    const EncodedIn in{codes.data(), scale.data(), zero.data(), nullptr, nullptr};
    if (rotated) {
      codec.decode_rotated(in, static_cast<std::int64_t>(n), result.data() + h * n * dim);
    } else {
      codec.decode(in, static_cast<std::int64_t>(n), result.data() + h * n * dim,
                   head_transform(&calibration_, side, static_cast<int>(h), 0));
    }
  }
  return result;
}

DecodeErrors DecodeProblem::errors() const {
  const auto dim = static_cast<std::size_t>(c_.dim), heads = static_cast<std::size_t>(c_.kv_heads),
             q_heads = static_cast<std::size_t>(c_.q_heads);
  const std::vector<std::uint8_t> raw = out_->host();
  const std::vector<float> lse = lse_->host(), queries = query_in_original_space();
  std::vector<float> got(q_.floats.size());
  to_float(raw.data(), c_.dtype, got.size(), got.data());
  DecodeErrors e;
  double error = 0, length = 0;
  std::vector<double> row_errors;
  for (std::size_t s = 0; s < lengths_.size(); ++s) {
    const auto n = static_cast<std::size_t>(lengths_[s]);
    std::vector<float> side_values[2] = {values(s, Side::K, false), values(s, Side::V, false)};
    for (const Side side : {Side::K, Side::V}) {  // exact tokens are attended as they were given
      const Values& original = side == Side::K ? k_ : v_;
      for (std::size_t h = 0; h < heads; ++h) {
        for (std::size_t t = 0; t < n; ++t) {
          if (static_cast<int>(t) >= c_.exact_sinks && static_cast<int>(t) < lengths_[s] - c_.exact_window) continue;
          std::copy_n(
              original.floats.begin() + static_cast<std::ptrdiff_t>(((static_cast<std::size_t>(first_token_[s]) + t) * heads + h) * dim),
              dim, side_values[static_cast<std::size_t>(side)].begin() + static_cast<std::ptrdiff_t>((h * n + t) * dim));
        }
      }
    }
    AttentionOptions options;
    options.window = c_.window;
    options.soft_cap = static_cast<double>(c_.soft_cap);
    options.alibi_slopes = c_.alibi ? slopes_.data() : nullptr;
    options.sink_logits = c_.sink_logits ? sinks_.data() : nullptr;
    const std::size_t rows = static_cast<std::size_t>(c_.q_len) * q_heads, first = s * rows;
    std::vector<double> want(rows * dim), want_lse(rows);
    reference_attention(queries.data() + first * dim, side_values[0].data(), side_values[1].data(), c_.q_len, lengths_[s], c_.q_heads,
                        c_.kv_heads, c_.dim, options, want.data(), want_lse.data());
    for (std::size_t r = 0; r < rows; ++r) {
      if (c_.out_rotated && std::isfinite(want_lse[r])) {  // y = forward (x - centre)
        const std::size_t head = r % q_heads / (q_heads / heads);
        const float* forward = calibration_.v.forward.empty() ? codec_->host(Side::V).rotation().matrix.data()
                                                              : calibration_.v.forward.data() + head * dim * dim;
        std::vector<double> y(dim);
        for (std::size_t i = 0; i < dim; ++i) {
          for (std::size_t j = 0; j < dim; ++j) {
            const double centre = calibration_.v.centre.empty() ? 0.0 : static_cast<double>(calibration_.v.centre[head * dim + j]);
            y[i] += static_cast<double>(forward[i * dim + j]) * (want[r * dim + j] - centre);
          }
        }
        std::copy(y.begin(), y.end(), want.begin() + static_cast<std::ptrdiff_t>(r * dim));
      }
      double row_error = 0;
      for (std::size_t d = 0; d < dim; ++d) {
        const double value = static_cast<double>(got[(first + r) * dim + d]), difference = value - want[r * dim + d];
        if (!std::isfinite(value)) e.finite = false;
        row_error += difference * difference;
        length += want[r * dim + d] * want[r * dim + d];
      }
      error += row_error;
      row_errors.push_back(row_error);
      const double got_lse = static_cast<double>(lse[first + r]);
      if (std::isinf(want_lse[r]) || std::isinf(got_lse)) {
        if (want_lse[r] != got_lse) e.lse = INFINITY;
      } else {
        if (std::isnan(got_lse)) e.finite = false;
        e.lse = std::max(e.lse, std::abs(got_lse - want_lse[r]));
      }
    }
  }
  if (length > 0) {
    e.out = std::sqrt(error / length);
    e.worst_row = std::sqrt(*std::max_element(row_errors.begin(), row_errors.end()) / (length / static_cast<double>(row_errors.size())));
  } else {
    e.out = e.worst_row = std::sqrt(error);  // all sequences empty: the output must be 0
  }
  return e;
}

}  // namespace tq4::gpu
