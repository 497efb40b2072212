// Pages written and read back in every layout: all codec combinations, block sizes and slot permutations, and the addresses themselves.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "../codec/vectors.h"
#include "core/side.h"
#include "core/units.h"
#include "tq4/error.h"
#include "tq4/layout.h"

namespace tq4 {
namespace {

using test::Planes;

/// Planes with random bytes and scales that fit the spec; no codec needed, so that every bit of every plane is exercised.
struct RandomSide {
  std::size_t row;
  std::vector<std::uint8_t> codes;
  std::vector<float> scale, zero;

  RandomSide(const SideSpec& side, int dim, std::int64_t n, unsigned seed, bool fill) : row(core::code_bytes(side, dim)) {
    std::mt19937 random(seed);
    codes.assign(static_cast<std::size_t>(n) * row, 0xee);
    scale.assign(core::has_scale(side) ? static_cast<std::size_t>(n) : 0, -1.0f);
    zero.assign(core::has_zero(side) ? static_cast<std::size_t>(n) : 0, -1.0f);
    if (!fill) return;
    for (std::uint8_t& b : codes) b = static_cast<std::uint8_t>(random());
    // 11-bit integers over a power of two are exact in fp16.
    for (float& s : scale) s = static_cast<float>(random() % 2048) / 64.0f;
    for (float& z : zero) z = static_cast<float>(random() % 2048) / 64.0f - 16.0f;
  }
  EncodedOut out() {
    return {codes.data(), scale.empty() ? nullptr : scale.data(), zero.empty() ? nullptr : zero.data(), nullptr, nullptr};
  }
  EncodedIn in() const {
    return {codes.data(), scale.empty() ? nullptr : scale.data(), zero.empty() ? nullptr : zero.data(), nullptr, nullptr};
  }
  bool operator==(const RandomSide&) const = default;
};

/// Writes n tokens to a random permutation of the slots of `blocks` pages and reads them back; checks that nothing else was touched.
void round_trip(const PageLayout& layout, std::int64_t blocks, const std::string& what) {
  const std::int64_t slots_total = blocks * layout.block_size, n = slots_total * 3 / 4;
  std::vector<std::int64_t> slots(static_cast<std::size_t>(slots_total));
  std::iota(slots.begin(), slots.end(), 0);
  std::mt19937 random(17);
  std::shuffle(slots.begin(), slots.end(), random);
  slots.resize(static_cast<std::size_t>(n));
  const RandomSide k(layout.spec.k, layout.head_dim, n * layout.num_kv_heads, 1, true),
      v(layout.spec.v, layout.head_dim, n * layout.num_kv_heads, 2, true);

  std::vector<std::uint8_t> cache(static_cast<std::size_t>(blocks * layout.block_stride), 0xaa);
  write_pages(layout, k.in(), v.in(), slots.data(), n, cache.data(), blocks);
  RandomSide k2(layout.spec.k, layout.head_dim, n * layout.num_kv_heads, 0, false),
      v2(layout.spec.v, layout.head_dim, n * layout.num_kv_heads, 0, false);
  read_pages(layout, cache.data(), blocks, slots.data(), n, k2.out(), v2.out());
  EXPECT_TRUE(k == k2) << what;
  EXPECT_TRUE(v == v2) << what;

  // Writing the same tokens again one by one, in another order, gives the same bytes: no token's bytes overlap another's.
  std::vector<std::uint8_t> again(cache.size(), 0xaa);
  for (std::int64_t i = n - 1; i >= 0; --i) {
    const std::int64_t first = i * layout.num_kv_heads;
    auto at = [first](const RandomSide& side) {
      EncodedIn p = side.in();
      p.codes += first * static_cast<std::int64_t>(side.row);
      if (p.scale) p.scale += first;
      if (p.zero) p.zero += first;
      return p;
    };
    write_pages(layout, at(k), at(v), &slots[static_cast<std::size_t>(i)], 1, again.data(), blocks);
  }
  EXPECT_TRUE(cache == again) << what;
}

TEST(NativePages, RoundTripEveryCodecDimAndBlockSize) {
  int served = 0;
  for (const char* name : {"tq1",      "tq2",       "tq3",          "tq4",          "tq5",          "tq6",   "tq7",   "tq8",    "k4v3",
                           "k3v4",     "k4v2",      "k2v4",         "k8v4",         "fp8",          "tq2.5", "tq3.5", "k3.5v2", "tq4-2d",
                           "tq3-norm", "vllm:k8v4", "vllm:4bit_nc", "vllm:k3v4_nc", "vllm:3bit_nc", "fp16",  "k16v4"}) {
    for (const int dim : {32, 64, 72, 80, 96, 128, 192, 256, 512}) {
      for (const int block : {16, 32, 64, 256}) {
        PageLayout layout;
        try {
          layout = make_layout(LayoutKind::Native, spec_from_name(name), 3, dim, block);
        } catch (const Error& error) {
          // The one thing that native pages refuse here: value rows that do not divide into 8 pieces.
          EXPECT_NE(std::string(error.what()).find("multiple of 8 bytes"), std::string::npos) << error.what();
          EXPECT_NE(core::code_bytes(spec_from_name(name).v, dim) % 8, 0u) << name << " " << dim;
          continue;
        }
        round_trip(layout, 256 / block + 2, std::string(name) + " d" + std::to_string(dim) + " block " + std::to_string(block));
        ++served;
      }
    }
  }
  EXPECT_EQ(served, 664);
}

TEST(TurboquantVllmPages, RoundTripDensePaddedAndWithGapsBetweenPages) {
  for (const char* name : {"turboquant-vllm", "turboquant-vllm-k3v2", "turboquant-vllm-k2v4"}) {
    for (const int dim : {32, 40, 64, 96, 128, 256}) {
      const CodecSpec spec = spec_from_name(name);
      PageLayout layout = make_layout(LayoutKind::TurboquantVllm, spec, 2, dim, 16);
      round_trip(layout, 4, std::string(name) + " dense");
      layout.block_stride += 64;
      round_trip(layout, 4, std::string(name) + " gap");
      round_trip(padded_turboquant_vllm_layout(spec, 2, dim, 32), 3, std::string(name) + " padded");
    }
  }
}

TEST(VllmPages, RoundTripWithTokensOrHeadsOutermost) {
  for (const char* name : {"vllm:k8v4", "vllm:4bit_nc", "vllm:k3v4_nc", "vllm:3bit_nc"}) {
    for (const int dim : {40, 64, 96, 128, 256}) {
      PageLayout layout = make_layout(LayoutKind::Vllm, spec_from_name(name), 3, dim, 16);
      round_trip(layout, 5, name);
      const std::int64_t slot = layout.head_stride;
      layout.token_stride = slot;
      layout.head_stride = layout.block_size * slot;
      round_trip(layout, 5, std::string(name) + ", heads outermost");
    }
  }
}

TEST(NativePages, AddressesAreTheDocumentedOnes) {
  const CodecSpec spec = spec_from_name("vllm:4bit_nc");  // zeros too
  const PageLayout layout = make_layout(LayoutKind::Native, spec, 2, 128, 32);
  const NativeTile tile = native_tile(spec, 128);
  const std::int64_t n = 64;
  const RandomSide k(spec.k, 128, n * 2, 5, true), v(spec.v, 128, n * 2, 6, true);
  std::vector<std::int64_t> slots(static_cast<std::size_t>(n));
  std::iota(slots.begin(), slots.end(), 0);
  std::vector<std::uint8_t> cache(static_cast<std::size_t>(2 * layout.block_stride), 0);
  write_pages(layout, k.in(), v.in(), slots.data(), n, cache.data(), 2);
  auto half_at = [](const std::uint8_t* p) {
    std::uint16_t bits = 0;
    std::memcpy(&bits, p, 2);
    return half_to_float(bits);
  };
  // Token 45 is token 13 of tile 0 of page 1 (45 = 32 + 13). The tiles of head 1 follow the two of head 0.
  const std::uint8_t* base = cache.data() + layout.block_stride + 1 * 2 * tile.bytes;
  const std::size_t vector = 45 * 2 + 1;
  EXPECT_EQ(0, std::memcmp(base + 13 * tile.k_row, k.codes.data() + vector * 64, 64));
  // Token 13 = 8*1 + 2*2 + 1.
  for (int i1 = 0; i1 < 8; ++i1) {
    const std::uint8_t* piece = base + tile.v_offset + (((1 * 8 + i1) * 4 + 2) * 2 + 1) * tile.v_piece;
    EXPECT_EQ(0, std::memcmp(piece, v.codes.data() + vector * 64 + static_cast<std::size_t>(i1 * 8), 8)) << i1;
  }
  // Scale blocks follow the page's 2 * 2 code tiles. Row g = 5: K scales of tokens 5 and 13, V scales of tokens 5 and 13.
  const std::uint8_t* scales = cache.data() + layout.block_stride + 2 * 2 * tile.bytes + 1 * 2 * tile.scale_bytes;
  EXPECT_EQ(half_at(scales + 5 * 8 + 2), k.scale[vector]);
  EXPECT_EQ(half_at(scales + 5 * 8 + 6), v.scale[vector]);
  EXPECT_EQ(half_at(scales + 64 + 5 * 4 + 2), v.zero[vector]);
  EXPECT_EQ(layout.block_stride, 2 * 2 * (tile.bytes + 96));
}

/// Code j of a row of 3-bit codes, packed LSB first.
int code_of_row(const std::uint8_t* row, int j) {
  int code = 0;
  for (int b = 0; b < 3; ++b) code |= (row[(3 * j + b) / 8] >> (3 * j + b) % 8 & 1) << b;
  return code;
}
/// Code j of group q of a unit, as tq4/layout.h says.
int code_of_unit(const std::uint8_t* unit, int q, int j) {
  int code = 0;
  for (int p = 0; p < 3; ++p) {
    const int byte = unit[q + 4 * p];
    if (j == 6) code |= (byte & 1) << p;
    if (j == 7) code |= (byte >> 4 & 1) << p;
    if (j == 2 * p) code = byte >> 1 & 7;
    if (j == 2 * p + 1) code = byte >> 5 & 7;
  }
  return code;
}

TEST(NativePages, CodesOfThreeBitsLieInUnits) {
  for (const char* name : {"tq3", "k4v3", "k3v4"}) {
    for (const int dim : {64, 128, 192, 256}) {
      const CodecSpec spec = spec_from_name(name);
      const PageLayout layout = make_layout(LayoutKind::Native, spec, 1, dim, 16);
      const NativeTile tile = native_tile(spec, dim);
      EXPECT_EQ(tile.k_units, spec.k.bits == 3);
      EXPECT_EQ(tile.v_units, spec.v.bits == 3);
      const RandomSide k(spec.k, dim, 16, 5, true), v(spec.v, dim, 16, 6, true);
      std::vector<std::int64_t> slots(16);
      std::iota(slots.begin(), slots.end(), 0);
      std::vector<std::uint8_t> cache(static_cast<std::size_t>(layout.block_stride), 0);
      write_pages(layout, k.in(), v.in(), slots.data(), 16, cache.data(), 1);
      const int units = dim / 64;
      for (int token = 0; token < 16; ++token) {
        const std::uint8_t *k_row = k.codes.data() + token * static_cast<int>(k.row),
                           *v_row = v.codes.data() + token * static_cast<int>(v.row);
        for (int t = 0; t < 4 && spec.k.bits == 3; ++t) {
          std::vector<int> owned;  // coordinates
          if (dim % 128 == 0) {
            for (int chunk = t; chunk < dim / 32; chunk += 4)
              for (int j = 0; j < 32; ++j) owned.push_back(chunk * 32 + j);
          } else {
            for (int j = 0; j < dim / 4; ++j) owned.push_back(t * dim / 4 + j);
          }
          for (std::size_t i = 0; i < owned.size(); ++i) {
            const int eighth = static_cast<int>(i) / 8, u = eighth / 2, e = eighth % 2;
            const std::uint8_t* unit = cache.data() + ((token % 8 * 4 + t) * units + u) * 12;
            ASSERT_EQ(code_of_unit(unit, 2 * (token / 8) + e, static_cast<int>(i) % 8), code_of_row(k_row, owned[i])) << name << dim;
          }
        }
        for (int j = 0; j < dim && spec.v.bits == 3; ++j) {
          const int i1 = j / (dim / 8), u = j % (dim / 8) / 8;
          const std::uint8_t* unit = cache.data() + tile.v_offset + ((i1 * 4 + token % 8 / 2) * units + u) * 12;
          ASSERT_EQ(code_of_unit(unit, 2 * (token / 8) + token % 2, j % 8), code_of_row(v_row, j)) << name << dim;
        }
      }
    }
  }
}

TEST(NativePages, RowsOfBeforeBecomeUnits) {
  for (const char* name : {"tq3", "k4v3", "k3v4", "tq4", "vllm:k3v4_nc"}) {
    for (const int dim : {64, 128, 256}) {
      const CodecSpec spec = spec_from_name(name);
      const PageLayout layout = make_layout(LayoutKind::Native, spec, 2, dim, 32);
      const NativeTile tile = native_tile(spec, dim);
      const std::int64_t n = 64;
      const RandomSide k(spec.k, dim, n * 2, 5, true), v(spec.v, dim, n * 2, 6, true);
      std::vector<std::int64_t> slots(static_cast<std::size_t>(n));
      std::iota(slots.begin(), slots.end(), 0);
      std::vector<std::uint8_t> cache(static_cast<std::size_t>(2 * layout.block_stride), 0);
      write_pages(layout, k.in(), v.in(), slots.data(), n, cache.data(), 2);
      std::vector<std::uint8_t> before = cache;
      for (int token = 0; token < n; ++token) {
        for (int head = 0; head < 2; ++head) {  // the order of version 1: rows of K, pieces of V
          std::uint8_t* to = before.data() + token / 32 * layout.block_stride + (head * 2 + token % 32 / 16) * tile.bytes;
          const int t = token % 16;
          const std::size_t vector = static_cast<std::size_t>(token * 2 + head);
          std::memcpy(to + t * tile.k_row, k.codes.data() + vector * k.row, k.row);
          for (int i1 = 0; i1 < 8; ++i1)
            std::memcpy(to + tile.v_offset + (((t / 8 * 8 + i1) * 4 + t % 8 / 2) * 2 + t % 2) * tile.v_piece,
                        v.codes.data() + vector * v.row + static_cast<std::size_t>(i1 * tile.v_piece),
                        static_cast<std::size_t>(tile.v_piece));
        }
      }
      EXPECT_EQ(before == cache, spec.k.bits != 3 && spec.v.bits != 3);
      core::rows_to_units(layout, before.data(), 2);
      EXPECT_EQ(before, cache) << name << " " << dim;
    }
  }
}

TEST(NativePages, UnusedScalesAreOne) {
  const CodecSpec spec = spec_from_name("k8v4");
  const PageLayout layout = make_layout(LayoutKind::Native, spec, 1, 64, 16);
  const RandomSide k(spec.k, 64, 1, 5, true), v(spec.v, 64, 1, 6, true);
  const std::int64_t slot = 9;
  std::vector<std::uint8_t> cache(static_cast<std::size_t>(layout.block_stride), 0);
  write_pages(layout, k.in(), v.in(), &slot, 1, cache.data(), 1);
  const std::uint8_t* scales = cache.data() + native_tile(spec, 64).bytes + 1 * 8;
  EXPECT_EQ(scales[2] | scales[3] << 8, 0x3c00);
  EXPECT_EQ(scales[0] | scales[1] << 8, 0);
}

TEST(Pages, NegativeSlotsAreSkippedAndWrongOnesRefusedBeforeAnyByteMoves) {
  const CodecSpec spec = spec_from_name("tq4");
  const PageLayout layout = make_layout(LayoutKind::Native, spec, 2, 64, 16);
  const std::int64_t n = 5;
  const RandomSide k(spec.k, 64, n * 2, 5, true), v(spec.v, 64, n * 2, 6, true);
  std::vector<std::uint8_t> some(static_cast<std::size_t>(2 * layout.block_stride), 7), all = some;
  const std::int64_t with_holes[] = {3, -1, 20, -7, 31}, dense[] = {3, 4, 20, 21, 31};
  write_pages(layout, k.in(), v.in(), with_holes, n, some.data(), 2);
  write_pages(layout, k.in(), v.in(), dense, n, all.data(), 2);
  RandomSide k2(spec.k, 64, n * 2, 0, false), v2(spec.v, 64, n * 2, 0, false);
  const std::int64_t skipped[] = {4, 21};
  read_pages(layout, some.data(), 2, skipped, 2, k2.out(), v2.out());
  for (std::size_t i = 0; i < 4 * k.row; ++i) EXPECT_EQ(k2.codes[i], 7);
  EXPECT_NE(some, all);

  const std::vector<std::uint8_t> before = some;
  const std::int64_t past[] = {0, 1, 2, 3, 32};
  try {
    write_pages(layout, k.in(), v.in(), past, n, some.data(), 2);
    ADD_FAILURE() << "slot 32 of 32 was accepted";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::Usage);
    EXPECT_NE(std::string(error.what()).find("slot 32 of token 4"), std::string::npos) << error.what();
  }
  EXPECT_EQ(some, before);
  EXPECT_THROW(read_pages(layout, some.data(), 2, with_holes, n, k2.out(), v2.out()), Error);
  write_pages(layout, {}, {}, nullptr, 0, nullptr, 0);  // no tokens: nothing is needed
  PageLayout narrow = layout;
  narrow.block_stride -= 16;
  EXPECT_THROW(write_pages(narrow, k.in(), v.in(), dense, n, some.data(), 2), Error);
}

}  // namespace
}  // namespace tq4
