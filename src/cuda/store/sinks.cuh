// Where the kernels of encode (rotate.cuh, hadamard.cuh) leave a row's codes and scales when they store: one sink a layout, so that each kernel carries
// the addresses and widths of one. Rows of vLLM's slots begin at any even address, those of the other layouts at multiples of 4 or more.
#pragma once

#include "cuda/encode/rotate_args.cuh"

namespace tq4::gpu {

/// The page and the token's place in it; slots outside of the cache are skipped.
struct SlotPlace {
  std::int64_t page = -1;
  int offset = 0;
};
__device__ __forceinline__ SlotPlace slot_place(const CacheView& cache, std::int64_t slot) {
  if (slot < 0 || slot >= cache.num_blocks * cache.block_size) return {};
  const std::int64_t page = cache.block_shift >= 0 ? slot >> cache.block_shift : slot / cache.block_size;
  return {page, static_cast<int>(slot - page * cache.block_size)};
}
__device__ __forceinline__ void put_scales(const CacheView& cache, const PartView& part, const RowCodec& codec, const TokenRef& ref,
                                           int head, float row_scale, float zero) {
  if (codec.has_scale || cache.native) {
    const float scale = codec.has_scale ? row_scale : 1.0f;  // native pages hold 1 where a codec has no scale
    std::uint8_t* to = scale_ptr(cache, part, ref, head);
    if (part.scale_f32) {
      *reinterpret_cast<float*>(to) = scale;
    } else {
      *reinterpret_cast<__half*>(to) = __float2half_rn(scale);
    }
  }
  if (codec.has_zero) *reinterpret_cast<__half*>(zero_ptr(cache, part, ref, head)) = __float2half_rn(zero);
}

/// G groups of `bits` bytes each, side by side from p on, an even address (G = 1 of 3 bits: any).
template <int G>
__device__ __forceinline__ void put_even(unsigned char* p, const unsigned (&low)[G], const unsigned (&high)[G], int bits) {
  const bool words = reinterpret_cast<std::uintptr_t>(p) % 4 == 0;
  const auto put_word = [&](int at, unsigned w) {
    if (words) {
      *reinterpret_cast<unsigned*>(p + at) = w;
    } else {
      *reinterpret_cast<unsigned short*>(p + at) = static_cast<unsigned short>(w);
      *reinterpret_cast<unsigned short*>(p + at + 2) = static_cast<unsigned short>(w >> 16);
    }
  };
  if (bits == 4) {
#pragma unroll
    for (int g = 0; g < G; ++g) put_word(4 * g, low[g]);
  } else if (bits == 8) {
#pragma unroll
    for (int g = 0; g < G; ++g) put_word(8 * g, low[g]), put_word(8 * g + 4, high[g]);
  } else if (bits == 3 && G > 1) {
#pragma unroll
    for (int g = 0; g + 1 < G; g += 2) {  // six bytes
      auto* half = reinterpret_cast<unsigned short*>(p + 3 * g);
      half[0] = static_cast<unsigned short>(low[g]);
      half[1] = static_cast<unsigned short>(low[g] >> 16 | low[g + 1] << 8);
      half[2] = static_cast<unsigned short>(low[g + 1] >> 8);
    }
  } else if (bits == 2) {
#pragma unroll
    for (int g = 0; g < G; ++g) reinterpret_cast<unsigned short*>(p)[g] = static_cast<unsigned short>(low[g]);
  } else {
#pragma unroll
    for (int g = 0; g < G; ++g) {
      for (int b = 0; b < bits; ++b) p[g * bits + b] = static_cast<unsigned char>(low[g] >> (8 * b));
    }
  }
}

struct PageSink {
  static constexpr int kSides = 2;
  using Slot = SlotPlace;
  CacheView cache;
  const std::int64_t* slot_mapping;
  __device__ __forceinline__ std::int64_t fetch(const RowPlace& place) const {
    return place.token < 0 ? -1 : __ldg(slot_mapping + place.token);
  }
  __device__ __forceinline__ Slot slot(std::int64_t fetched) const { return slot_place(cache, fetched); }
};

/// Our tiles: rows of K as they are, rows of V in pieces of D / 8 coordinates; codes of 3 bits in units.
struct NativeSink : PageSink {
  template <int N>
  __device__ __forceinline__ void put(const RowCodec& codec, bool key, const Slot& slot, int head, int first,
                                      const LaneCodes<N>& codes) const {
    if (slot.page < 0) return;
    const int tile = head * (cache.block_size >> 4) + (slot.offset >> 4), t = slot.offset & 15;
    std::uint8_t* page = cache.data + slot.page * cache.block_stride;
    std::uint8_t* to = page + static_cast<std::int64_t>(tile) * cache.tile_bytes + (key ? cache.k.codes : cache.v.codes);
    if (in_units(cache, key)) {
      to += unit_byte(codec.dim, key, t, 0);
      if (key && N > 8) {
#pragma unroll
        for (int g = 0; g + 1 < N / 8; g += 2) {  // two groups are side by side
          const unsigned one = core::group_to_unit(codes.low[g]), other = core::group_to_unit(codes.low[g + 1]);
          auto* half = reinterpret_cast<unsigned short*>(to + unit_byte(codec.dim, true, 0, first / 8 + g));
          half[0] = static_cast<unsigned short>((one & 0xffu) | other << 8);
          half[2] = static_cast<unsigned short>((one >> 8 & 0xffu) | (other & 0xff00u));
          half[4] = static_cast<unsigned short>(one >> 16 | (other >> 8 & 0xff00u));
        }
      } else {
#pragma unroll
        for (int g = 0; g < N / 8; ++g) put_unit_group(to + unit_byte(codec.dim, key, 0, first / 8 + g), codes.low[g]);
      }
    } else if (key) {
      put_aligned(to + t * codec.code_bytes + first / 8 * codec.bits, codes.low, codes.high, codec.bits);
    } else {
      const int shift = codec.dim >> 7;  // log2 of a piece's groups: D = 64, 128, 256
      to += ((t >> 3) * 64 + (t & 7)) * cache.v_piece;
      const auto address = [&](int group) { return to + (group >> shift) * 8 * cache.v_piece + (group & ((1 << shift) - 1)) * codec.bits; };
      if (N > 8 && shift > 0) {
#pragma unroll
        for (int g = 0; g + 1 < N / 8; g += 2) {
          const unsigned low[2] = {codes.low[g], codes.low[g + 1]}, high[2] = {codes.high[g], codes.high[g + 1]};
          put_even(address(first / 8 + g), low, high, codec.bits);
        }
      } else {
#pragma unroll
        for (int g = 0; g < N / 8; ++g) {
          const unsigned low[1] = {codes.low[g]}, high[1] = {codes.high[g]};
          put_even(address(first / 8 + g), low, high, codec.bits);
        }
      }
    }
    if (first != 0) return;
    const TokenRef ref{nullptr, page + cache.scale_blocks + static_cast<std::int64_t>(tile) * cache.scale_bytes, t};
    put_scales(cache, key ? cache.k : cache.v, codec, ref, head, codes.scale, codes.zero);
  }
};

/// vLLM's slots, scales in fp16.
struct SlotSink : PageSink {
  template <int N>
  __device__ __forceinline__ void put(const RowCodec& codec, bool key, const Slot& slot, int head, int first,
                                      const LaneCodes<N>& codes) const {
    if (slot.page < 0) return;
    const PartView& part = key ? cache.k : cache.v;
    std::uint8_t* row = cache.data + slot.page * cache.block_stride + slot.offset * cache.token_stride + head * part.codes_head;
    put_even(row + part.codes + first / 8 * codec.bits, codes.low, codes.high, codec.bits);
    if (first != 0) return;
    if (codec.has_scale) *reinterpret_cast<__half*>(row + part.scale) = __float2half_rn(codes.scale);
    if (codec.has_zero) *reinterpret_cast<__half*>(row + part.zero) = __float2half_rn(codes.zero);
  }
};

/// turboquant-vllm's rows, of its codecs: every code a nibble, the even coordinate's the high one, and its norms.
struct NibbleSink : PageSink {
  using PeerNorm = void;
  template <int N>
  __device__ __forceinline__ void put(const RowCodec&, bool key, const Slot& slot, int head, int first, const LaneCodes<N>& codes) const {
    if (slot.page < 0) return;
    const PartView& part = key ? cache.k : cache.v;
    std::uint8_t* row = cache.data + slot.page * cache.block_stride + slot.offset * cache.token_stride;
    auto* to = reinterpret_cast<unsigned*>(row + part.codes + head * part.codes_head + first / 2);
    unsigned w[N / 8];
#pragma unroll
    for (int g = 0; g < N / 8; ++g) w[g] = (codes.low[g] >> 4 & 0x0f0f0f0fu) | (codes.low[g] & 0x0f0f0f0fu) << 4;
    if (N > 8 && reinterpret_cast<std::uintptr_t>(to) % (N / 2) == 0) {
      if constexpr (N == 32) *reinterpret_cast<uint4*>(to) = make_uint4(w[0], w[1], w[2], w[3]);
      if constexpr (N == 16) *reinterpret_cast<uint2*>(to) = make_uint2(w[0], w[1]);
    } else {
#pragma unroll
      for (int g = 0; g < N / 8; ++g) to[g] = w[g];
    }
    if (first == 0) *reinterpret_cast<float*>(row + part.scale + head * part.scale_head) = codes.scale;
  }
};

}  // namespace tq4::gpu
