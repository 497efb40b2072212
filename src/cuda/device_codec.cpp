// Tables of a codec on the device. Everything is laid into one host arena first, copied once, and the pointers of SideTables are offsets
// into that allocation. With a calibration the tables of the side it covers replace the codec's own.
#include <cuda_runtime_api.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <numbers>
#include <utility>

#include "core/linalg.h"
#include "cuda/check.h"
#include "cuda/encode/row.h"
#include "cuda/tiles/image.h"
#include "tq4/gpu.h"

namespace tq4::gpu {
namespace {

/// Collects tables and remembers which pointer each belongs to; resolve() fills the pointers once the allocation exists.
class Arena {
 public:
  template <class T>
  void add(const T*& slot, const std::vector<T>& values) {
    if (values.empty()) return;
    const std::size_t offset = (bytes_.size() + 255) / 256 * 256;
    bytes_.resize(offset + values.size() * sizeof(T));
    std::memcpy(bytes_.data() + offset, values.data(), values.size() * sizeof(T));
    slots_.emplace_back(reinterpret_cast<const void**>(&slot), offset);
  }
  const std::vector<std::uint8_t>& bytes() const { return bytes_; }
  void resolve(const std::uint8_t* base) {
    for (auto& [slot, offset] : slots_) *slot = base + offset;
  }

 private:
  std::vector<std::uint8_t> bytes_;
  std::vector<std::pair<const void**, std::size_t>> slots_;
};

std::vector<float> transposed(const std::vector<float>& m, int heads, int dim) {
  std::vector<float> t(m.size());
  for (int h = 0; h < heads; ++h) {
    const std::size_t base = static_cast<std::size_t>(h) * dim * dim;
    for (int i = 0; i < dim; ++i) {
      for (int j = 0; j < dim; ++j) t[base + static_cast<std::size_t>(j) * dim + i] = m[base + static_cast<std::size_t>(i) * dim + j];
    }
  }
  return t;
}

/// m = hi + lo up to 2^-22 of its largest entries: two fp16 parts for tensor cores.
void split(const std::vector<float>& m, std::vector<std::uint16_t>& hi, std::vector<std::uint16_t>& lo) {
  hi.resize(m.size());
  lo.resize(m.size());
  for (std::size_t i = 0; i < m.size(); ++i) {
    hi[i] = float_to_half(m[i]);
    lo[i] = float_to_half(m[i] - half_to_float(hi[i]));
  }
}

std::vector<float> to_fp32(const std::vector<double>& values) { return {values.begin(), values.end()}; }

/// Cells of encode/lanes.cuh, where 32 of them hold at most one boundary each.
void add_cells(Arena& arena, const std::vector<float>& boundaries, const std::vector<float>& centroids, SideTables& t) {
  if (centroids.empty() || centroids.size() > 16) return;
  const float first = boundaries.front(), last = boundaries.back(), margin = first < last ? (last - first) / 28.0f : 0.01f;
  const float scale = 1.0f / (last - first + 2 * margin), offset = (margin - first) * scale;
  std::vector<float> cells(96);
  int below = 0;
  for (std::size_t c = 0; c < 32; ++c) {
    cells[c + 32] = centroids[(15 - c % 16) % centroids.size()];
    cells[c + 64] = centroids[c % centroids.size()];
  }
  for (int c = 0; c < 32; ++c) {
    float& cell = cells[static_cast<std::size_t>(c)];
    const auto code = static_cast<std::uint32_t>(14 - below) & 15u;  // as lanes.cuh wants it
    cell = std::bit_cast<float>(0x7f7ffff0u | code);
    const auto place = [&](float z) {
      return static_cast<int>(std::fma(std::clamp(std::fma(z, scale, offset), 0.0f, 1.0f), 31.0f, 8388608.0f) - 8388608.0f);
    };
    if (below == static_cast<int>(boundaries.size()) || place(boundaries[static_cast<std::size_t>(below)]) != c) continue;
    const float boundary = boundaries[static_cast<std::size_t>(below)];
    if (++below < static_cast<int>(boundaries.size()) && place(boundaries[static_cast<std::size_t>(below)]) <= c) return;
    const auto bits = std::bit_cast<std::uint32_t>(boundary);
    std::uint32_t best = (bits & ~15u) | code;
    if (best > bits + 8) best -= 16;
    if (best + 8 < bits) best += 16;
    cell = std::bit_cast<float>((bits & 0x7fffffffu) < 16 ? 0x80000000u | code : best);  // 0 is not below a boundary of 0
  }
  if (below != static_cast<int>(boundaries.size())) return;
  arena.add(t.cells, cells);
  t.cell_scale = scale;
  t.cell_offset = offset;
}

/// Cells of encode/code_table.cuh, where 128 of them hold at most one boundary each.
void add_code_cells(Arena& arena, const std::vector<float>& boundaries, SideTables& t) {
  if (boundaries.empty() || boundaries.size() > 15 || boundaries.front() <= -1.0f) return;
  std::vector<std::uint32_t> words(256);
  for (std::uint32_t c = 0, below = 0; c < 128; ++c) {
    const auto place = [&](float z) { return std::bit_cast<std::uint32_t>(std::fma(z, kCodeCellScale, 3.0f)) - 0x40000000u; };
    const bool splits = below < boundaries.size() && place(boundaries[below]) >> 16 == c;
    for (std::uint32_t odd = 0; odd < 2; ++odd) {
      const std::uint32_t one = odd != 0 ? 1u << 28 : 1u << 24;
      words[128 * odd + c] = below * one + (splits ? one - place(boundaries[below]) : 0u) - 0x40000000u;
    }
    if (splits && ++below < boundaries.size() && place(boundaries[below]) >> 16 <= c) return;
  }
  words[255] = kNoNumberCell;
  arena.add(t.code_cells, words);
}

void add_code_tables(Arena& arena, const Codec& codec, SideTables& t) {
  arena.add(t.centroids, to_fp32(codec.codebook().centroids));
  arena.add(t.boundaries, to_fp32(codec.codebook().boundaries));
  add_cells(arena, to_fp32(codec.codebook().boundaries), to_fp32(codec.codebook().centroids), t);
  add_code_cells(arena, to_fp32(codec.codebook().boundaries), t);
  arena.add(t.outlier_centroids, to_fp32(codec.outlier_codebook().centroids));
  arena.add(t.outlier_boundaries, to_fp32(codec.outlier_codebook().boundaries));
  arena.add(t.qjl, codec.qjl_matrix());
  if (codec.has_signs()) arena.add(t.qjl_t, transposed(codec.qjl_matrix(), 1, codec.head_dim()));
  const std::vector<float>& points = codec.pair_table().points;
  std::vector<std::uint32_t> halves(points.size() / 2);
  for (std::size_t i = 0; i < halves.size(); ++i) {
    halves[i] = float_to_half(points[2 * i]) | static_cast<std::uint32_t>(float_to_half(points[2 * i + 1])) << 16;
  }
  arena.add(t.pair_half2, halves);
  if (codec.spec().pair_codebook) arena.add(t.pair_points, points);
}

void add_transform(Arena& arena, const Codec& codec, const SideCalibration& calibration, int heads, int dim, SideTables& t) {
  const RotationKind kind = codec.spec().rotation;
  const bool calibrated = !calibration.forward.empty();
  const std::size_t square = static_cast<std::size_t>(dim) * dim;
  if (calibrated && (calibration.forward.size() != square * heads || calibration.inverse.size() != square * heads)) {
    throw Error(ErrorCode::Usage, "calibration matrices are not [num_kv_heads, D, D]", "DeviceCodec");
  }
  t.per_head = calibrated;
  t.feedback = !calibration.feedback.empty();
  t.identity = !calibrated && kind == RotationKind::None;
  t.butterflies = !calibrated && (kind == RotationKind::Hadamard || kind == RotationKind::HadamardSigned);
  t.hadamard = t.butterflies && (dim & (dim - 1)) == 0;
  const int copies = calibrated ? heads : 1;
  const std::vector<float>& forward = calibrated ? calibration.forward : codec.rotation().matrix;
  const std::vector<float> forward_t = transposed(forward, copies, dim);
  const std::vector<float>& inverse = calibrated ? calibration.inverse : forward_t;
  const std::vector<float> inverse_t = transposed(inverse, copies, dim);
  arena.add(t.forward, forward);
  arena.add(t.forward_t, forward_t);
  arena.add(t.inverse, inverse);
  arena.add(t.inverse_t, inverse_t);
  std::vector<std::uint16_t> hi, lo;
  split(forward, hi, lo);
  arena.add(t.forward_hi, hi), arena.add(t.forward_lo, lo);
  split(inverse, hi, lo);
  arena.add(t.inverse_hi, hi), arena.add(t.inverse_lo, lo);
  split(inverse_t, hi, lo);
  arena.add(t.query_hi, hi), arena.add(t.query_lo, lo);
  if (t.butterflies) arena.add(t.hadamard_signs, codec.rotation().signs);
  if (has_image(dim) && !t.identity) {
    t.image_parts = t.hadamard ? 1 : 2;
    t.image_scale = t.hadamard ? std::abs(forward[0]) : 1.0f;
    arena.add(t.forward_image, matrix_image(forward, copies, dim, LaneOrder::Quarters, LaneOrder::Chunks, t.image_parts, t.hadamard));
    if (dim <= 128) {
      std::vector<std::uint16_t> image =
          matrix_image(forward, copies, dim, LaneOrder::Quarters, LaneOrder::InOrder, t.image_parts, t.hadamard);
      if (t.image_parts == 2) {
        const std::vector<std::uint16_t> more = bf16_image(image, dim);
        image.insert(image.end(), more.begin(), more.end());
      }
      arena.add(t.forward_image_in_order, image);
    }
    arena.add(t.inverse_image, matrix_image(inverse, copies, dim, LaneOrder::Chunks, LaneOrder::Quarters, t.image_parts, t.hadamard));
  }

  const std::size_t centres = static_cast<std::size_t>(heads) * dim;
  if (!calibration.centre.empty()) {
    if (calibration.centre.size() != centres) throw Error(ErrorCode::Usage, "centres are not [num_kv_heads, D]", "DeviceCodec");
    std::vector<float> rotated(centres);
    for (int h = 0; h < heads; ++h) {
      for (int i = 0; i < dim; ++i) {
        double sum = 0;
        const float* row = forward.data() + (calibrated ? h * square : 0) + static_cast<std::size_t>(i) * dim;
        for (int j = 0; j < dim; ++j) sum += static_cast<double>(row[j]) * calibration.centre[static_cast<std::size_t>(h) * dim + j];
        rotated[static_cast<std::size_t>(h) * dim + i] = static_cast<float>(sum);
      }
      if (!t.feedback) continue;
      const std::vector<float> mean(calibration.centre.begin() + static_cast<std::ptrdiff_t>(h) * dim,
                                    calibration.centre.begin() + static_cast<std::ptrdiff_t>(h + 1) * dim);
      const std::vector<float> seen = core::least_squares(inverse.data() + static_cast<std::size_t>(h) * square, mean.data(), dim);
      std::copy(seen.begin(), seen.end(), rotated.begin() + static_cast<std::ptrdiff_t>(h) * dim);
    }
    arena.add(t.centre, calibration.centre);
    arena.add(t.centre_rotated, rotated);
  }
  if (!calibration.rope_mu.empty()) {
    if (calibration.rope_mu.size() != centres) throw Error(ErrorCode::Usage, "rope_mu is not [num_kv_heads, D]", "DeviceCodec");
    arena.add(t.rope_mu, calibration.rope_mu);
  }
}

/// theta^(-2i/rope_dim) / (2 pi) turns a position, as a fraction of 2^64: position * turns wraps exactly.
std::vector<std::uint64_t> turns(double theta, int rope_dim) {
  std::vector<std::uint64_t> t;
  for (int i = 0; i < rope_dim / 2; ++i) {
    const double turn = std::pow(theta, -2.0 * i / rope_dim) / (2 * std::numbers::pi);
    t.push_back(static_cast<std::uint64_t>(std::ldexp(turn, 64)));
  }
  return t;
}

Codec make_codec(const SideSpec& spec, int dim, const SideCalibration& calibration) {
  Codec plain(spec, dim);
  if (calibration.pair_points.empty()) return plain;
  if (!spec.pair_codebook) throw Error(ErrorCode::Usage, "the calibration has pair points, the codec no pair codebook", "DeviceCodec");
  const PairTable pairs{spec.bits, dim, calibration.pair_points};
  return Codec(spec, dim, plain.codebook(), plain.rotation(), &pairs);
}

}  // namespace

bool compiled() { return true; }

int device_count() {
  int count = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess) {
    cudaGetLastError();
    return 0;
  }
  return count;
}

DeviceInfo device_info(int device) {
  if (device < 0 || device >= device_count()) {
    throw Error(ErrorCode::NoDevice, "no CUDA device " + std::to_string(device) + " (" + std::to_string(device_count()) + " visible)");
  }
  cudaDeviceProp p{};
  check(cudaGetDeviceProperties(&p, device), "device_info");
  DeviceInfo info;
  info.name = p.name;
  info.sm_count = p.multiProcessorCount;
  info.compute_major = p.major;
  info.compute_minor = p.minor;
  info.l2_bytes = static_cast<std::size_t>(p.l2CacheSize);
  info.memory_bytes = p.totalGlobalMem;
  info.shared_bytes_per_block = p.sharedMemPerBlockOptin;
  check(cudaDriverGetVersion(&info.driver_version), "device_info");
  return info;
}

struct DeviceCodec::Impl {
  CodecSpec spec;
  int head_dim, num_kv_heads;
  Codec k_host, v_host;
  SideTables k, v;
  double rope_theta = 0;
  int rope_dim = 0;
  DeviceInfo device;
  void* memory = nullptr;

  Impl(const CodecSpec& s, int heads, Codec kc, Codec vc)
      : spec(s), head_dim(kc.head_dim()), num_kv_heads(heads), k_host(std::move(kc)), v_host(std::move(vc)) {}
  Impl(const Impl&) = delete;
  Impl& operator=(const Impl&) = delete;
  ~Impl() {
    if (memory) cudaFree(memory);
  }
  void upload(const LayerCalibration& calibration);
};

/// Tables of both sides onto the current device.
void DeviceCodec::Impl::upload(const LayerCalibration& c) {
  int ordinal = 0;
  check(cudaGetDevice(&ordinal), "DeviceCodec");
  device = device_info(ordinal);
  rope_theta = c.rope_theta;
  rope_dim = c.rope_dim;

  Arena arena;
  for (const Side side : {Side::K, Side::V}) {
    const bool key = side == Side::K;
    SideTables& tables = key ? k : v;
    const Codec& codec = key ? k_host : v_host;
    add_code_tables(arena, codec, tables);
    add_transform(arena, codec, key ? c.k : c.v, num_kv_heads, head_dim, tables);
  }
  if (!c.v.rope_mu.empty()) throw Error(ErrorCode::Usage, "rope_mu is for keys only", "DeviceCodec");
  if (!c.k.rope_mu.empty()) {
    if (c.rope_theta <= 0 || c.rope_dim <= 0 || c.rope_dim > head_dim || c.rope_dim % 2 != 0) {
      throw Error(ErrorCode::Usage, "rope_mu needs rope_theta and an even rope_dim up to head_dim", "DeviceCodec");
    }
    arena.add(k.rope_turns, turns(c.rope_theta, c.rope_dim));
  }
  check(cudaMalloc(&memory, arena.bytes().size()), "DeviceCodec tables");
  check(cudaMemcpy(memory, arena.bytes().data(), arena.bytes().size(), cudaMemcpyHostToDevice), "DeviceCodec tables");
  arena.resolve(static_cast<const std::uint8_t*>(memory));
}

DeviceCodec::DeviceCodec(const CodecSpec& spec, int head_dim, int num_kv_heads, const LayerCalibration* calibration) {
  if (device_count() == 0) throw Error(ErrorCode::NoDevice, "no CUDA device is visible");
  if (num_kv_heads < 1) throw Error(ErrorCode::Usage, "num_kv_heads must be at least 1", "DeviceCodec");
  if (calibration && (calibration->head_dim != head_dim || calibration->num_kv_heads != num_kv_heads)) {
    throw Error(ErrorCode::Usage, "the calibration is for another shape", "DeviceCodec");
  }
  const LayerCalibration none;
  const LayerCalibration& c = calibration ? *calibration : none;
  impl_ = std::make_unique<Impl>(spec, num_kv_heads, make_codec(spec.k, head_dim, c.k), make_codec(spec.v, head_dim, c.v));
  impl_->upload(c);
}

DeviceCodec::DeviceCodec(const CodecSpec& spec, int num_kv_heads, Codec k, Codec v) {
  if (device_count() == 0) throw Error(ErrorCode::NoDevice, "no CUDA device is visible");
  if (num_kv_heads < 1) throw Error(ErrorCode::Usage, "num_kv_heads must be at least 1", "DeviceCodec");
  if (!(k.spec() == spec.k) || !(v.spec() == spec.v) || k.head_dim() != v.head_dim()) {
    throw Error(ErrorCode::Usage, "the codecs given are not the spec's", "DeviceCodec");
  }
  impl_ = std::make_unique<Impl>(spec, num_kv_heads, std::move(k), std::move(v));
  impl_->upload(LayerCalibration{});
}

DeviceCodec::~DeviceCodec() = default;
DeviceCodec::DeviceCodec(DeviceCodec&&) noexcept = default;
DeviceCodec& DeviceCodec::operator=(DeviceCodec&&) noexcept = default;
const CodecSpec& DeviceCodec::spec() const { return impl_->spec; }
int DeviceCodec::head_dim() const { return impl_->head_dim; }
int DeviceCodec::num_kv_heads() const { return impl_->num_kv_heads; }
const SideTables& DeviceCodec::k() const { return impl_->k; }
const SideTables& DeviceCodec::v() const { return impl_->v; }
const Codec& DeviceCodec::host(Side side) const { return side == Side::K ? impl_->k_host : impl_->v_host; }
double DeviceCodec::rope_theta() const { return impl_->rope_theta; }
int DeviceCodec::rope_dim() const { return impl_->rope_dim; }
const DeviceInfo& DeviceCodec::device() const { return impl_->device; }

}  // namespace tq4::gpu
