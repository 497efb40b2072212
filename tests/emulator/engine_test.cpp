// The emulator itself: instructions do what the PTX manual says, and faults that a GPU may hide are found.
#include "emulator/emulator.h"

#include <cuda_fp16.h>
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include "cuda/launch.cuh"
#include "cuda/ptx.cuh"

namespace tq4::emulator {
namespace {

/// Options of one test, put back after it.
class Emulator : public testing::Test {
 protected:
  ~Emulator() override { options() = before_; }
  /// Whether `kernel` gives true with every seed from 1 to 16 and all ways copies arrive.
  template <class Run>
  static int right_of_48(const Run& run) {
    int right = 0;
    for (std::uint64_t seed = 1; seed <= 16; ++seed) {
      for (const Copies copies : {Copies::Eager, Copies::Random, Copies::Lazy}) {
        options().seed = seed;
        options().copies = copies;
        right += run() ? 1 : 0;
      }
    }
    return right;
  }
  static std::string error_of(unsigned threads, const std::function<void()>& kernel, std::size_t shared = 1024) {
    try {
      emulate("k", {1, 1, 1}, threads, shared, kernel);
    } catch (const Error& e) {
      return e.what();
    }
    return "";
  }

 private:
  Options before_ = options();
};

TEST_F(Emulator, ThreadsAndBlocks) {
  std::vector<int> seen(3 * 2 * 2 * 70);
  emulate("k", {3, 2, 2}, 70, 0, [&] {
    EXPECT_EQ(gridDim.x * gridDim.y * gridDim.z, 12u);
    ++seen[((blockIdx.z * 2 + blockIdx.y) * 3 + blockIdx.x) * blockDim.x + threadIdx.x];
  });
  EXPECT_EQ(seen, std::vector<int>(seen.size(), 1));
}

TEST_F(Emulator, ShufflesVotesReductions) {
  options().seed = 3;
  emulate("k", {1, 1, 1}, 64, 0, [&] {
    const int lane = threadIdx.x % 32;
    EXPECT_EQ(__shfl_sync(~0u, lane, 5), 5);
    EXPECT_EQ(__shfl_sync(~0u, lane, 5, 8), lane / 8 * 8 + 5);
    EXPECT_EQ(__shfl_xor_sync(~0u, lane, 3), lane ^ 3);
    EXPECT_EQ(__shfl_up_sync(~0u, lane, 2), lane >= 2 ? lane - 2 : lane);
    EXPECT_EQ(__shfl_down_sync(~0u, lane, 4, 16), lane % 16 + 4 < 16 ? lane + 4 : lane);
    EXPECT_EQ(__ballot_sync(~0u, lane % 3 == 0), 0x49249249u);
    EXPECT_EQ(__any_sync(~0u, lane == 31), 1);
    EXPECT_EQ(__all_sync(~0u, lane < 31), 0);
    EXPECT_EQ(__reduce_add_sync(~0u, lane), 496);
    EXPECT_EQ(__reduce_max_sync(~0u, static_cast<unsigned>(lane)), 31u);
    if (lane < 4) EXPECT_EQ(__ballot_sync(0xfu, lane == 2), 4u);
  });
}

TEST_F(Emulator, BytePermutation) {
  EXPECT_EQ(__byte_perm(0x33221100u, 0x77665544u, 0x7604), 0x77660044u);
  EXPECT_EQ(__byte_perm(0x80u, 0, 0x4448), 0x0000'00ffu);
  EXPECT_EQ(__funnelshift_r(0x12345678u, 0xabcdef01u, 8), 0x01123456u);
}

TEST_F(Emulator, TensorCores) {
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  std::uint16_t a[16][16], b[16][8];
  for (auto& row : a) {
    for (auto& x : row) x = float_to_half(normal(random));
  }
  for (auto& row : b) {
    for (auto& x : row) x = float_to_half(normal(random));
  }
  float c[16][8] = {};
  emulate("k", {1, 1, 1}, 32, 2048, [&] {
    const int lane = threadIdx.x, g = lane / 4, t = lane % 4;
    // A by ldmatrix from shared memory, B (held [k][n]) by ldmatrix with a transpose.
    for (int i = lane; i < 256; i += 32) gpu::sts16(kSharedBase + i * 2, a[i / 16][i % 16]);
    for (int i = lane; i < 128; i += 32) gpu::sts16(kSharedBase + 512 + i * 2, b[i / 8][i % 8]);
    __syncwarp();
    unsigned fa[4], fb[4];
    gpu::ldmatrix_x4(fa, kSharedBase + (lane % 16 * 16 + lane / 16 * 8) * 2);
    gpu::ldmatrix_x4_trans(fb, kSharedBase + 512 + lane % 16 * 16);
    EXPECT_EQ(fa[1], a[g + 8][2 * t] | static_cast<unsigned>(a[g + 8][2 * t + 1]) << 16);
    EXPECT_EQ(fb[1], b[2 * t + 8][g] | static_cast<unsigned>(b[2 * t + 9][g]) << 16);
    float d[4] = {1, 2, 3, 4};
    gpu::mma_16816(d, fa, fb[0], fb[1]);
    for (int i = 0; i < 4; ++i) c[g + i / 2 * 8][2 * t + i % 2] = d[i] - static_cast<float>(i + 1);
    EXPECT_EQ(gpu::transpose8x8(static_cast<unsigned>(16 * g + 2 * t) | static_cast<unsigned>(16 * g + 2 * t + 1) << 16),
              static_cast<unsigned>(16 * 2 * t + g) | static_cast<unsigned>(16 * (2 * t + 1) + g) << 16);
  });
  for (int m = 0; m < 16; ++m) {
    for (int n = 0; n < 8; ++n) {
      double want = 0;
      for (int k = 0; k < 16; ++k) want += static_cast<double>(half_to_float(a[m][k])) * static_cast<double>(half_to_float(b[k][n]));
      EXPECT_NEAR(c[m][n], want, 1e-5);
    }
  }
}

TEST_F(Emulator, TensorCoresOfBf16) {
  std::mt19937 random(2);
  std::normal_distribution<float> normal;
  float a[16][16], b[16][8], c[16][8] = {};
  const auto bf16 = [](float v) { return std::bit_cast<std::uint32_t>(v) >> 16; };
  const auto draw = [&] { return std::bit_cast<float>(std::bit_cast<std::uint32_t>(normal(random)) & 0xffff0000u); };
  for (auto& row : a) {
    for (auto& x : row) x = draw();
  }
  for (auto& row : b) {
    for (auto& x : row) x = draw();
  }
  emulate("k", {1, 1, 1}, 32, 0, [&] {
    const int lane = threadIdx.x, g = lane / 4, t = lane % 4;
    const auto of_a = [&](int m, int k) { return bf16(a[m][k]) | bf16(a[m][k + 1]) << 16; };
    const auto of_b = [&](int k) { return bf16(b[k][g]) | bf16(b[k + 1][g]) << 16; };
    float d[4] = {1, 2, 3, 4};
    gpu::mma_bf16(d, of_a(g, 2 * t), of_a(g + 8, 2 * t), of_a(g, 2 * t + 8), of_a(g + 8, 2 * t + 8), of_b(2 * t), of_b(2 * t + 8));
    for (int i = 0; i < 4; ++i) c[g + i / 2 * 8][2 * t + i % 2] = d[i] - static_cast<float>(i + 1);
  });
  for (int m = 0; m < 16; ++m) {
    for (int n = 0; n < 8; ++n) {
      double want = 0;
      for (int k = 0; k < 16; ++k) want += static_cast<double>(a[m][k]) * static_cast<double>(b[k][n]);
      EXPECT_NEAR(c[m][n], want, 1e-5);
    }
  }
}

/// Every thread reads what a thread of another warp, or another lane, wrote.
bool exchange(int distance, bool with_barrier) {
  bool right = true;
  emulate("k", {1, 1, 1}, 64, 256, [&] {
    TQ4_DYNAMIC_SHARED(unsigned, words);
    const unsigned i = threadIdx.x, other = i ^ static_cast<unsigned>(distance);
    words[i] = i;
    if (with_barrier) distance < 32 ? __syncwarp() : __syncthreads();
    if (words[other] != other) right = false;
  });
  return right;
}
TEST_F(Emulator, FindsAMissingBarrier) {
  EXPECT_EQ(right_of_48([] { return exchange(32, true); }), 48);
  EXPECT_EQ(right_of_48([] { return exchange(1, true); }), 48);
  EXPECT_EQ(right_of_48([] { return exchange(32, false); }), 0);
  EXPECT_EQ(right_of_48([] { return exchange(1, false); }), 0);
}

/// A pipeline of two cp.async stages; `pending`: what the wait allows.
template <int Pending>
bool staged() {
  std::vector<std::uint32_t> from(4 * 128);
  for (std::size_t i = 0; i < from.size(); ++i) from[i] = static_cast<std::uint32_t>(i);
  bool right = true;
  emulate("k", {1, 1, 1}, 32, 4096, [&] {
    const unsigned lane = threadIdx.x;
    const auto ask = [&](unsigned tile) {
      if (tile < 4) gpu::copy_async_16(kSharedBase + tile % 2 * 512 + lane * 16, from.data() + tile * 128 + lane * 4);
      gpu::copy_async_commit();
    };
    ask(0);
    for (unsigned tile = 0; tile < 4; ++tile) {
      ask(tile + 1);
      gpu::copy_async_wait<Pending>();
      __syncwarp();
      const unsigned other = lane ^ 1;
      if (gpu::lds32(kSharedBase + tile % 2 * 512 + other * 16) != tile * 128 + other * 4) right = false;
      __syncwarp();
    }
  });
  return right;
}
TEST_F(Emulator, FindsAWaitForTooFewCopies) {
  EXPECT_EQ(right_of_48(staged<1>), 48);
  EXPECT_LE(right_of_48(staged<2>), 16);  // only those where copies arrive at once
}

/// A ring of bulk copies as the fused kernel has it; `wait`: for the mbarrier; `order`: __syncwarp before a stage is asked for again.
bool ring(bool wait, bool order) {
  constexpr int kTiles = 9, kStages = 2;
  alignas(16) std::uint8_t from[kTiles][96];
  for (int i = 0; i < kTiles; ++i) std::memset(from[i], i + 1, 96);
  bool right = true;
  emulate("k", {1, 1, 1}, 32, 1024, [&] {
    constexpr std::uint32_t kRing = kSharedBase + 64;
    if (threadIdx.x < kStages) gpu::mbarrier_init(kSharedBase + threadIdx.x * 8);
    gpu::fence_mbarrier_init();
    __syncwarp();
    const auto ask = [&](int tile) {
      if (tile < kTiles)
        gpu::bulk_load<64, 32>(kRing + tile % kStages * 96, from[tile], from[tile] + 64, kSharedBase + tile % kStages * 8, 0);
    };
    for (int i = 0; i < kStages; ++i) ask(i);
    for (int tile = 0; tile < kTiles; ++tile) {
      if (wait) gpu::mbarrier_wait(kSharedBase + tile % kStages * 8, tile / kStages & 1);
      const std::uint32_t v = gpu::lds16(kRing + tile % kStages * 96 + threadIdx.x * 2);
      if (v != static_cast<std::uint32_t>((tile + 1) * 0x101)) right = false;
      if (order) __syncwarp();
      ask(tile + kStages);
    }
    for (int i = 0; !wait && i < kStages; ++i)
      gpu::mbarrier_wait(kSharedBase + (kTiles - 1 - i) % kStages * 8, (kTiles - 1 - i) / kStages & 1);
  });
  return right;
}
TEST_F(Emulator, BulkCopies) {
  EXPECT_EQ(right_of_48([] { return ring(true, true); }), 48);
  // elect.sync brings the lanes together before the copy is asked for, so nothing is lost without the __syncwarp.
  EXPECT_EQ(right_of_48([] { return ring(true, false); }), 48);
  EXPECT_LE(right_of_48([] {
              try {
                return ring(false, true);
              } catch (const Error&) {
                return false;
              }
            }),
            16);
}

/// Lines leave shared memory by bulk stores; `wait`: before the place is written again.
bool leaves(bool wait) {
  constexpr int kLines = 6;
  alignas(16) std::uint8_t to[kLines][64] = {};
  emulate("k", {1, 1, 1}, 32, 1024, [&] {
    for (int i = 0; i < kLines; ++i) {
      if (wait) gpu::bulk_stores_read();
      __syncwarp();
      gpu::sts16(kSharedBase + threadIdx.x * 2, static_cast<std::uint32_t>((i + 1) * 0x101));
      gpu::fence_bulk_copies();
      __syncwarp();
      if (threadIdx.x == 0) gpu::bulk_store(to[i], kSharedBase, 64);
    }
    gpu::bulk_stores_read();
  });
  for (int i = 0; i < kLines; ++i) {
    for (const std::uint8_t byte : to[i]) {
      if (byte != i + 1) return false;
    }
  }
  return true;
}
TEST_F(Emulator, BulkStores) {
  EXPECT_EQ(right_of_48([] { return leaves(true); }), 48);
  EXPECT_LE(right_of_48([] { return leaves(false); }), 16);
  EXPECT_NE(error_of(32,
                     [] {
                       options().copies = Copies::Lazy;
                       alignas(16) static std::uint8_t to[16];
                       if (threadIdx.x == 0) gpu::bulk_store(to, kSharedBase, 16);
                     })
                .find("still read"),
            std::string::npos);
}

TEST_F(Emulator, FindsBrokenRules) {
  EXPECT_NE(error_of(32, [] { threadIdx.x < 16 ? __syncwarp() : static_cast<void>(__any_sync(~0u, true)); }).find("while other lanes"),
            std::string::npos);
  EXPECT_NE(error_of(32,
                     [] {
                       if (threadIdx.x != 7) __syncwarp();
                     })
                .find("7"),
            std::string::npos);
  EXPECT_NE(error_of(64,
                     [] {
                       if (threadIdx.x < 32) gpu::mbarrier_init(kSharedBase), __syncwarp(), gpu::mbarrier_wait(kSharedBase, 0);
                     })
                .find("nothing can go on"),
            std::string::npos);
  EXPECT_NE(error_of(32, [] { gpu::mbarrier_wait(kSharedBase, 0); }).find("not initialised"), std::string::npos);
  EXPECT_NE(error_of(32, [] { gpu::lds32(kSharedBase + 2); }).find("misaligned"), std::string::npos);
  EXPECT_NE(error_of(32, [] { gpu::lds32(kSharedBase + 1024); }).find("outside"), std::string::npos);
  EXPECT_NE(error_of(32, [] { gpu::lds32(kSharedBase - 4); }).find("outside"), std::string::npos);
  EXPECT_NE(error_of(32, [] { __trap(); }).find("__trap"), std::string::npos);
  EXPECT_NE(error_of(1025, [] {}).find("cannot be launched"), std::string::npos);
  EXPECT_NE(error_of(
                32, [] {}, 228 << 10)
                .find("more than there are"),
            std::string::npos);
  EXPECT_EQ(error_of(33, [] { __syncthreads(); }), "");  // and the engine is sound after all that
}

}  // namespace
}  // namespace tq4::emulator
