// cuda/wgmma.cuh on the emulator: products against loops over the matrices they are of, results that do not come before they are waited for, named
// barriers.
#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include <functional>
#include <random>
#include <vector>

#include "cuda/wgmma.cuh"
#include "emulator/emulator.h"

namespace tq4::emulator {
namespace {

using Matrix = std::vector<std::vector<float>>;

/// Small whole numbers: sums are exact, and int8 can hold them.
Matrix whole_numbers(std::size_t rows, std::size_t columns, unsigned seed) {
  std::mt19937 random(seed);
  Matrix m(rows, std::vector<float>(columns));
  for (auto& row : m) {
    for (float& v : row) v = static_cast<float>(static_cast<int>(random() % 15) - 7);
  }
  return m;
}

/// Panels of 128-byte rows from shared address `to` on, 16-byte chunks swizzled.
template <class T, class Convert>
void put(const Matrix& m, std::uint32_t to, const Convert& convert) {
  constexpr std::size_t kColumns = 128 / sizeof(T);
  for (std::size_t r = 0; r < m.size(); ++r) {
    for (std::size_t c = 0; c < m[r].size(); ++c) {
      const std::size_t byte = c % kColumns * sizeof(T), panel = c / kColumns * m.size() * 128;
      const auto at = static_cast<std::uint32_t>(panel + r * 128 + ((byte / 16) ^ (r & 7)) * 16 + byte % 16);
      *reinterpret_cast<T*>(shared_at(to + at, sizeof(T))) = convert(m[r][c]);
    }
  }
}
std::uint16_t half_of(float v) { return float_to_half(v); }

constexpr std::uint32_t kA = kSharedBase, kB = kA + 16384, kShared = 16384 + 32768;

class Wgmma : public testing::Test {
 protected:
  ~Wgmma() override { options() = before_; }
  /// `run` on a warpgroup with every way that copies arrive.
  template <class Run>
  static void on_warpgroup(const Run& run) {
    for (const Copies copies : {Copies::Eager, Copies::Random, Copies::Lazy}) {
      options() = {7, copies, 1};
      emulate("k", {1, 1, 1}, 128, kShared, run);
    }
  }
  static int row(int i) { return static_cast<int>(threadIdx.x) / 32 * 16 + lane_id() / 4 + i / 2 % 2 * 8; }
  static int column(int i) { return i / 4 * 8 + 2 * (lane_id() % 4) + i % 2; }

 private:
  Options before_ = options();
};

TEST_F(Wgmma, RowsTimesRows) {
  const Matrix a = whole_numbers(64, 128, 1), b = whole_numbers(128, 128, 2);
  const auto want = [&](int m, int n) {
    float sum = 0;
    for (std::size_t k = 0; k < 128; ++k) sum += a[static_cast<std::size_t>(m)][k] * b[static_cast<std::size_t>(n)][k];
    return sum;
  };
  on_warpgroup([&] {
    if (threadIdx.x == 0) put<std::uint16_t>(a, kA, half_of), put<std::uint16_t>(b, kB, half_of);
    __syncthreads();
    float d[64];
    gpu::wgmma_begin();
    for (std::uint32_t k = 0; k < 8; ++k)
      gpu::wgmma_rows_rows(d, gpu::wgmma_rows(kA + k / 4 * 8192 + k % 4 * 32), gpu::wgmma_rows(kB + k / 4 * 16384 + k % 4 * 32), k > 0);
    gpu::wgmma_commit();
    gpu::wgmma_wait<0>();
    for (int i = 0; i < 64; ++i) ASSERT_EQ(d[i], want(row(i), column(i)));
    __syncthreads();
    if (threadIdx.x == 0) {
      put<std::int8_t>(a, kA, [](float v) { return static_cast<std::int8_t>(v); });
      put<std::int8_t>(b, kB, [](float v) { return static_cast<std::int8_t>(v); });
    }
    __syncthreads();
    int n[64];
    for (std::uint32_t k = 0; k < 4; ++k) gpu::wgmma_rows_rows(n, gpu::wgmma_rows(kA + k * 32), gpu::wgmma_rows(kB + k * 32), k > 0);
    gpu::wgmma_commit();
    gpu::wgmma_wait<0>();
    for (int i = 0; i < 64; ++i) ASSERT_EQ(static_cast<float>(n[i]), want(row(i), column(i)));
  });
}

TEST_F(Wgmma, RegistersTimesRows) {
  const Matrix a = whole_numbers(64, 16, 3), b = whole_numbers(128, 64, 4);  // B's columns 48 .. 63 take part
  const auto multiply = [&]<int N>(float(&d)[N], bool add) {
    std::uint32_t fragment[4];
    for (int i = 0; i < 4; ++i) {
      const auto r = static_cast<std::size_t>(row(2 * (i % 2))), c = static_cast<std::size_t>(2 * (lane_id() % 4) + i / 2 * 8);
      fragment[i] = half_of(a[r][c]) | static_cast<std::uint32_t>(half_of(a[r][c + 1])) << 16;
    }
    for (float& v : d) v = 0.5f;
    gpu::wgmma_registers_rows(d, fragment, gpu::wgmma_further(gpu::wgmma_rows(kB), 96), add);
    gpu::wgmma_commit();
    gpu::wgmma_wait<0>();
    for (int i = 0; i < N; ++i) {
      float want = add ? 0.5f : 0.0f;
      for (std::size_t k = 0; k < 16; ++k) want += a[static_cast<std::size_t>(row(i))][k] * b[static_cast<std::size_t>(column(i))][48 + k];
      ASSERT_EQ(d[i], want);
    }
  };
  on_warpgroup([&] {
    if (threadIdx.x == 0) put<std::uint16_t>(b, kB, half_of);
    __syncthreads();
    float narrow[32], wide[64];
    for (const bool add : {false, true}) multiply(narrow, add), multiply(wide, add);
  });
}

/// Operands the hardware would read from elsewhere, or that it takes from one lane alone.
TEST_F(Wgmma, RefusesOperands) {
  const auto error_of = [](const std::function<std::uint64_t()>& operand) {
    options() = {7, Copies::Eager, 1};
    try {
      emulate("k", {1, 1, 1}, 128, kShared, [&] {
        float d[32];
        const std::uint32_t fragment[4] = {};
        gpu::wgmma_registers_rows(d, fragment, operand(), false);
      });
    } catch (const Error& e) {
      return std::string(e.what());
    }
    return std::string();
  };
  EXPECT_EQ(error_of([] { return gpu::wgmma_rows(kB); }), "");
  EXPECT_NE(error_of([] { return gpu::wgmma_rows(kB + 128); }).find("first row of a group"), std::string::npos);
  EXPECT_NE(error_of([] { return gpu::wgmma_rows(kB + threadIdx.x % 2 * 1024); }).find("lanes of a wgmma differ"), std::string::npos);
}

TEST_F(Wgmma, RegistersTimesColumns) {
  const Matrix a = whole_numbers(64, 16, 3), b = whole_numbers(128, 128, 4);  // B's rows 32 .. 47 take part
  on_warpgroup([&] {
    if (threadIdx.x == 0) put<std::uint16_t>(b, kB, half_of);
    __syncthreads();
    std::uint32_t fragment[4];
    for (int i = 0; i < 4; ++i) {
      const auto r = static_cast<std::size_t>(row(2 * (i % 2))), c = static_cast<std::size_t>(2 * (lane_id() % 4) + i / 2 * 8);
      fragment[i] = half_of(a[r][c]) | static_cast<std::uint32_t>(half_of(a[r][c + 1])) << 16;
    }
    float d[64];
    for (float& v : d) v = 0.5f;
    gpu::wgmma_registers_columns(d, fragment, gpu::wgmma_columns(kB + 32 * 128, 16384));
    gpu::wgmma_commit();
    gpu::wgmma_wait<0>();
    for (int i = 0; i < 64; ++i) {
      float want = 0.5f;
      for (std::size_t k = 0; k < 16; ++k) want += a[static_cast<std::size_t>(row(i))][k] * b[32 + k][static_cast<std::size_t>(column(i))];
      ASSERT_EQ(d[i], want);
    }
  });
}

/// What reads a result, or writes an operand, before the wait sees it go wrong.
TEST_F(Wgmma, NothingBeforeTheWait) {
  options() = {7, Copies::Lazy, 1};
  const Matrix a = whole_numbers(64, 64, 5), b = whole_numbers(128, 64, 6);
  emulate("k", {1, 1, 1}, 128, kShared, [&] {
    if (threadIdx.x == 0) put<std::uint16_t>(a, kA, half_of), put<std::uint16_t>(b, kB, half_of);
    __syncthreads();
    float d[64], second[64];
    for (float& v : d) v = -1000;
    gpu::wgmma_rows_rows(d, gpu::wgmma_rows(kA), gpu::wgmma_rows(kB), false);
    gpu::wgmma_commit();
    gpu::wgmma_rows_rows(second, gpu::wgmma_rows(kA), gpu::wgmma_rows(kB), false);
    gpu::wgmma_commit();
    for (const float v : d) ASSERT_EQ(v, -1000);
    gpu::wgmma_wait<1>();
    for (const float v : d) ASSERT_NE(v, -1000);
    __syncthreads();
    if (threadIdx.x == 0) put<std::uint16_t>(Matrix(64, std::vector<float>(64, 0.0f)), kA, half_of);
    __syncthreads();
    gpu::wgmma_wait<0>();
    for (const float v : second) ASSERT_EQ(v, 0);
  });
}

TEST_F(Wgmma, NamedBarriers) {
  for (std::uint64_t seed = 1; seed <= 8; ++seed) {
    options() = {seed, Copies::Random, 1};
    std::vector<int> order;
    emulate("k", {1, 1, 1}, 64, 0, [&] {  // two warps take turns
      const int me = static_cast<int>(threadIdx.x) / 32;
      if (me == 1) gpu::named_barrier_arrive(1, 64);
      for (int i = 0; i < 4; ++i) {
        gpu::named_barrier_sync(1 + me, 64);
        if (lane_id() == 0) order.push_back(me);
        __syncwarp();
        gpu::named_barrier_arrive(2 - me, 64);
      }
    });
    EXPECT_EQ(order, (std::vector<int>{0, 1, 0, 1, 0, 1, 0, 1}));
  }
  const auto error_of = [](const std::function<void()>& kernel) {
    try {
      emulate("k", {1, 1, 1}, 64, 0, kernel);
    } catch (const Error& e) {
      return std::string(e.what());
    }
    return std::string();
  };
  EXPECT_NE(error_of([] {
              if (threadIdx.x < 32) gpu::named_barrier_sync(3, 64);
            }).find("named barrier 3"),
            std::string::npos);
  EXPECT_NE(error_of([] { gpu::named_barrier_sync(3, threadIdx.x < 32 ? 64 : 32); }).find("under way"), std::string::npos);
}

}  // namespace
}  // namespace tq4::emulator
