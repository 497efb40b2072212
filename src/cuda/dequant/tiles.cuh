// Codes back to rows of the original space on the tensor cores: centroids as fp16 fragments straight from the codes, times the image of the inverse
// (tiles/image.h), times the row's scale, plus the centre. A warpgroup takes 64 rows at a time; the image is in shared memory, and for fp16 and bf16
// the table of pairs (pairs.cuh). The caller's `Rows` says where a row's codes and scale are and where it goes. (Planes on Hopper: hopper_planes.cu.)
#pragma once

#include <type_traits>

#include "cuda/dequant/pairs.cuh"
#include "cuda/encode/row.cuh"
#include "cuda/launch.cuh"
#include "cuda/tiles/product.cuh"
#include "cuda/tiles/rows.cuh"

namespace tq4::gpu {

constexpr int kInverseRows = 64;
/// Of a block: as many warpgroups as have registers for what a tile takes.
template <int D>
constexpr int kInverseThreads = D == 256 ? 256 : 384;
using InversePairs = PairTable<32>;

/// A lane's G groups of 8 codes (bits <= 4) of one row as they lie at p, which is as aligned as G * bits bytes are: 32-bit words, or 16-bit ones
/// where G * bits is no multiple of 4.
template <int G>
__device__ __forceinline__ void fetch_groups(unsigned (&raw)[G], const std::uint8_t* p, int bits) {
  constexpr int k1 = G > 1 ? 1 : 0, k2 = G > 2 ? 2 : 0, k3 = G > 3 ? 3 : 0;
  const auto* words = reinterpret_cast<const unsigned*>(p);
  const auto* halves = reinterpret_cast<const unsigned short*>(p);
  if constexpr (G == 8) {
#pragma unroll
    for (int i = 0; i < 8; i += 4) {
      unsigned four[4];
      fetch_groups(four, p + i * bits, bits);
      raw[i] = four[0], raw[i + 1] = four[1], raw[i + 2] = four[2], raw[i + 3] = four[3];
    }
  } else if constexpr (G == 4) {
    if (bits == 4) {
      const uint4 v = __ldcs(reinterpret_cast<const uint4*>(p));
      raw[0] = v.x, raw[k1] = v.y, raw[k2] = v.z, raw[k3] = v.w;
    } else {
      raw[0] = __ldcs(words);
      if (bits >= 2) raw[k1] = __ldcs(words + 1);
      if (bits >= 3) raw[k2] = __ldcs(words + 2);
    }
  } else {
    static_assert(G == 2);
    raw[0] = 0;
    if (bits % 2 == 0) raw[0] = __ldcs(words);
    if (bits % 2 == 1) raw[0] = __ldcs(halves);
    if (bits == 3) raw[0] |= static_cast<unsigned>(__ldcs(halves + 1)) << 16;
    if (bits == 4) raw[k1] = __ldcs(words + 1);
    if (bits == 3) raw[k1] = __ldcs(halves + 2);
  }
}
/// raw to group i in w[i] from bit 0 on; bits above are of anything.
template <int G>
__device__ __forceinline__ void spread_groups(unsigned (&w)[G], const unsigned (&raw)[G], int bits) {
  constexpr int k1 = G > 1 ? 1 : 0, k2 = G > 2 ? 2 : 0, k3 = G > 3 ? 3 : 0;
  if constexpr (G == 8) {
#pragma unroll
    for (int i = 0; i < 8; i += 4) {
      const unsigned from[4] = {raw[i], raw[i + 1], raw[i + 2], raw[i + 3]};
      unsigned four[4];
      spread_groups(four, from, bits);
      w[i] = four[0], w[i + 1] = four[1], w[i + 2] = four[2], w[i + 3] = four[3];
    }
    return;
  }
  w[0] = raw[0];
  if (bits == 4) {
    w[k1] = raw[k1], w[k2] = raw[k2], w[k3] = raw[k3];
  } else if (bits == 3) {
    w[k1] = __funnelshift_r(raw[0], raw[k1], 24);
    if (G == 4) w[k2] = __funnelshift_r(raw[k1], raw[k2], 16), w[k3] = raw[k2] >> 8;
  } else if (bits == 2) {
    w[k1] = raw[0] >> 16;
    if (G == 4) w[k2] = raw[k1], w[k3] = raw[k1] >> 16;
  } else {
    w[k1] = raw[0] >> 8;
    if (G == 4) w[k2] = raw[0] >> 16, w[k3] = raw[0] >> 24;
  }
}

/// Centroids of a row's codes as fragments in two parts, hi and what fp16 leaves: columns 16 s + 2 t and 16 s + 8 + 2 t of row r (0: g, 1: g + 8) of
/// the image's order Quarters. `table`: the centroid of lane % 2^bits. Returns the sum of the lane's squares (norm correction).
template <int D>
__device__ __forceinline__ float centroid_fragments(RowFragments<D>& hi, RowFragments<D>& lo, int r, const unsigned (&w)[D / 32], int bits,
                                                    float table, bool squares) {
  float sum = 0.0f;
#pragma unroll
  for (int s = 0; s < D / 16; ++s) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int i = 4 * s + 2 * h;  // of the lane's coordinates
      const float a = __shfl_sync(~0u, table, static_cast<int>(w[i / 8] >> (i % 8 * bits)));
      const float b = __shfl_sync(~0u, table, static_cast<int>(w[i / 8] >> ((i + 1) % 8 * bits)));
      if (squares) sum = __fmaf_rn(a, a, __fmaf_rn(b, b, sum));
      split_pair(a, b, hi[s][2 * h + r], lo[s][2 * h + r]);
    }
  }
  return sum;
}

/// The 8 neighbouring coordinates v * factor + centre to out.
__device__ __forceinline__ void put_eight(void* out, DType dtype, std::int64_t at, const float (&v)[8]) {
  if (dtype == DType::F32) {
    auto* to = reinterpret_cast<float4*>(static_cast<float*>(out) + at);
    __stcs(to, make_float4(v[0], v[1], v[2], v[3]));
    __stcs(to + 1, make_float4(v[4], v[5], v[6], v[7]));
    return;
  }
  unsigned w[4];
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    w[k] = dtype == DType::F16 ? half2_bits(v[2 * k], v[2 * k + 1]) : bf16x2_bits(v[2 * k], v[2 * k + 1]);
  }
  __stcs(reinterpret_cast<uint4*>(static_cast<unsigned short*>(out) + at), make_uint4(w[0], w[1], w[2], w[3]));
}

/// Parts of an image that a block keeps.
__host__ __device__ constexpr int inverse_parts_held(bool fine) { return fine ? 2 : 1; }

struct InverseSide {
  RowCodec codec;
  int row_bits;      ///< bits a code takes in a row (4 for turboquant-vllm's nibbles)
  int nibbles_high;  ///< the even coordinate is in the high nibble
  int parts;         ///< of the matrix that are used
};

/// A row of the caller's. `Rows` has side(), out(), dtype, zero (= 0, see plain_fragments), count() (rows of the block's share of the grid),
/// image_head(), row(i), fetch(raw, row, t) and spread(w, raw): the lane's groups of codes as fetch_groups and spread_groups give them.
/// Rows of its own order have chunk(out, c) as well: where coordinates 8 c .. 8 c + 7 of the row at `out` go. begin(), where it is: by every thread,
/// first of all. Rows that keep what they read as it lies there have kRawWords<G> (words that G groups take), spread(w, raw, row) and scale(row).
/// NarrowRows: they are never of fp32.
struct InverseRow {
  const std::uint8_t* codes;  ///< the row's, or the tile's it is in
  int token;                  ///< in the tile
  int head;
  float scale;
  std::int64_t out;  ///< the first element's place
};

template <class Rows, int G>
constexpr int raw_words() {
  if constexpr (requires { Rows::template kRawWords<G>; }) {
    return Rows::template kRawWords<G>;
  } else {
    return G;
  }
}
template <class Rows, int G, int Raw>
__device__ __forceinline__ void spread_row(const Rows& a, unsigned (&w)[G], const unsigned (&raw)[Raw], const InverseRow& row) {
  if constexpr (requires { a.spread(w, raw, row); }) {
    a.spread(w, raw, row);
  } else {
    a.spread(w, raw);
  }
}
template <class Rows>
__device__ __forceinline__ float scale_of(const Rows& a, const InverseRow& row) {
  if constexpr (requires { a.scale(row); }) {
    return a.scale(row);
  } else {
    return row.scale;
  }
}

/// A tile that is the same in all lanes: as in rotate_tiles (encode/rotate.cuh). Fine: for fp32, with both parts of the matrix.
template <int D, bool Fine, class Rows>
__global__ void __launch_bounds__(kInverseThreads<D>, 1) inverse_tiles(const __grid_constant__ Rows a) {
  constexpr int kColumns = D < 128 ? D : 128;  // at a time
  constexpr int Parts = inverse_parts_held(Fine);
  TQ4_DYNAMIC_SHARED(float, memory);
  const InverseSide& side = a.side();
  const SideTables& tables = side.codec.t;
  const int thread = static_cast<int>(threadIdx.x), lane = thread & 31, g = lane >> 2, t = lane & 3;
  const std::uint32_t image = image_address(memory), pairs_at = image + Parts * image_part_bytes(D);
  const auto* matrix =
      tables.inverse_image + (tables.per_head ? static_cast<std::int64_t>(a.image_head()) * tables.image_parts * D * D : 0);
  const float table = __ldg(tables.cells + 64 + lane);
  if constexpr (Fine) {
    copy_image<D>(image, matrix, side.parts, Parts, thread, kInverseThreads<D>);
  } else {
    begin_image<D>(image, matrix, thread, kInverseThreads<D>);
    InversePairs::fill(pairs_at, table, side.row_bits, side.nibbles_high != 0, thread, kInverseThreads<D>);
    finish_image();
  }
  wait_for_previous_kernels();
  launch_dependents();
  if constexpr (requires { a.begin(); }) a.begin();
  const InversePairs pairs(pairs_at, side.row_bits, lane);
  const unsigned rows = a.count(), step = gridDim.x * (kInverseThreads<D> / 128) * kInverseRows;
  unsigned first = (static_cast<unsigned>(__shfl_sync(~0u, thread / 128, 0)) * gridDim.x + blockIdx.x) * kInverseRows;
  const unsigned mine = static_cast<unsigned>(thread) % 128 / 32 * 16 + static_cast<unsigned>(g);

  unsigned raw[2][raw_words<Rows, D / 32>()];
  InverseRow next[2];
  const auto fetch = [&](unsigned begin) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      next[r] = a.row(min(begin + mine + 8 * static_cast<unsigned>(r), rows - 1));
      a.fetch(raw[r], next[r], t);
    }
  };
  if (first < rows) fetch(first);
  for (; first < rows; first += step) {
    RowFragments<D> hi, lo;
    InverseRow row[2];
    unsigned w[2][D / 32];
    float factor[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      row[r] = next[r];
#pragma unroll
      for (unsigned& v : raw[r]) v ^= a.zero;
      spread_row(a, w[r], raw[r], row[r]);
      if constexpr (Fine) {
#pragma unroll
        for (unsigned& v : w[r]) {
          if (side.nibbles_high) v = (v >> 4 & 0x0f0f0f0fu) | (v & 0x0f0f0f0fu) << 4;
        }
      }
    }
    if (first + step < rows) fetch(first + step);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float squares = 0.0f;  // norm correction
      if constexpr (Fine) {
        squares = centroid_fragments<D>(hi, lo, r, w[r], side.row_bits, table, side.codec.norm_correction != 0);
      } else {
        pair_fragments<D>(hi, r, w[r], pairs);
        if (side.codec.norm_correction) squares = squares_of<D>(hi, r);
      }
      factor[r] = scale_of(a, row[r]) * tables.image_scale;
      if (side.codec.norm_correction) factor[r] *= __fdiv_rn(1.0f, __fsqrt_rn(__fadd_rn(of_four_lanes(squares), 1e-16f)));
    }
#pragma unroll
    for (int column = 0; column < D; column += kColumns) {
      float x[kColumns / 2];
      products_begin();
      add_columns<D, kColumns>(x, hi, image, column, true);
      if constexpr (Parts > 1) add_columns<D, kColumns>(x, hi, image + image_part_bytes(D), column, false);
      if constexpr (Fine) add_columns<D, kColumns>(x, lo, image, column, false);
      products_end();
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        if (first + mine + 8 * static_cast<unsigned>(r) >= rows) continue;
        const float* centre = tables.centre ? tables.centre + static_cast<std::int64_t>(row[r].head) * D : nullptr;
#pragma unroll
        for (int c = 0; c < kColumns / 32; ++c) {
          const int at = column + 32 * c + 8 * t;
          float v[8];
#pragma unroll
          for (int k = 0; k < 8; ++k) {
            v[k] = x[4 * (4 * c + k / 2) + 2 * r + k % 2] * factor[r];
            if (centre) v[k] += __ldg(centre + at + k);
          }
          if constexpr (requires { a.chunk(row[r].out, 0); }) {
            put_eight(a.out(), static_cast<DType>(a.dtype), a.chunk(row[r].out, at / 8), v);
          } else {
            put_eight(a.out(), static_cast<DType>(a.dtype), row[r].out + at, v);
          }
        }
      }
    }
  }
}

/// Parts of the matrix for rows of this dtype: what fp16 and bf16 round away need not be computed.
inline int inverse_parts(const RowCodec& r, DType dtype) { return dtype == DType::F32 ? r.t.image_parts : 1; }
/// Of a block: the image, the table.
inline std::size_t inverse_shared(int dim, DType dtype) {
  const bool fine = dtype == DType::F32;
  return image_shared_bytes(dim, inverse_parts_held(fine)) + (fine ? 0 : InversePairs::kBytes);
}
/// Whether a side's codes become rows of the original space here; `out` is where rows go, dense. D = 256: not fp32, whose image would have no room.
inline bool inverse_serves(const RowCodec& r, const void* out, DType dtype, const DeviceInfo& device) {
  return r.kind == static_cast<int>(CodeKind::Mse) && r.t.cells && !r.t.pair_points && r.t.inverse_image && !r.t.rope_mu &&
         (r.dim <= 128 || dtype != DType::F32) && inverse_shared(r.dim, dtype) <= device.shared_bytes_per_block &&
         reinterpret_cast<std::uintptr_t>(out) % 16 == 0;
}

/// `rows` rows for each of grid_y, grid_z.
template <class Rows>
void launch_inverse(const char* what, const Rows& a, std::int64_t rows, unsigned grid_y, unsigned grid_z, int dim, const DeviceInfo& device,
                    cudaStream_t stream) {
  const auto launch = [&](auto d, auto* kernel) {
    constexpr int kThreads = kInverseThreads<decltype(d)::value>, kGroups = kThreads / 128;
    const std::int64_t tiles = (rows + kInverseRows - 1) / kInverseRows,
                       most = std::max<std::int64_t>(1, device.sm_count / static_cast<std::int64_t>(grid_y * grid_z));
    const dim3 grid(static_cast<unsigned>(std::clamp<std::int64_t>((tiles + kGroups - 1) / kGroups, 1, most)), grid_y, grid_z);
    const std::size_t shared = inverse_shared(dim, static_cast<DType>(a.dtype));
    allow_shared(kernel, shared, device.shared_bytes_per_block, what);
    launch_kernel_early_if(launches_early(device), what, {grid, kThreads, shared, stream}, kernel, a);
  };
  const auto launch_dim = [&](auto d) {
    constexpr int kDim = decltype(d)::value;
    if constexpr (kDim < 256 && !requires { typename Rows::NarrowRows; }) {
      if (static_cast<DType>(a.dtype) == DType::F32) return launch(d, inverse_tiles<kDim, true, Rows>);
    }
    launch(d, inverse_tiles<kDim, false, Rows>);
  };
  dim == 64    ? launch_dim(std::integral_constant<int, 64>{})
  : dim == 128 ? launch_dim(std::integral_constant<int, 128>{})
               : launch_dim(std::integral_constant<int, 256>{});
}

}  // namespace tq4::gpu
