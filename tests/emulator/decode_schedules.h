// What the emulated tests of decode kernels share: the schedules a case runs with (order of blocks, warps and lanes, ways that copies arrive, numbers of
// thread blocks), the limits of the GPU tests against the float64 reference, and a small case. Which path must serve it and what else has to hold
// is each kernel's own (fused_test.cpp, slots_test.cpp).
#pragma once

#include <gtest/gtest.h>

#include "emulator/emulator.h"
#include "gpu/decode_harness.h"

namespace tq4::gpu {

using emulator::Copies;

struct Schedule {
  std::uint64_t seed;
  Copies copies;
  int blocks;
};

/// Puts the emulator's options back.
class EmulatedDecode : public testing::Test {
 protected:
  ~EmulatedDecode() override { emulator::options() = before_; }
  static void expect_within_limits(const DecodeCase& c, DecodeProblem& problem) {
    const DecodeErrors e = problem.errors();
    const double limit = c.dtype == DType::F16 ? 2e-3 : 1e-2;
    EXPECT_TRUE(e.finite);
    EXPECT_LT(e.out, limit);
    EXPECT_LT(e.worst_row, 4 * limit);
    EXPECT_LT(e.lse, 5e-3);
  }
  static DecodeCase small(const char* spec, int dim) {
    DecodeCase c;
    c.spec = spec;
    c.dim = dim;
    c.q_heads = 4;
    c.kv_heads = 2;
    c.lengths = {0, 1, 16, 37, 150};
    return c;
  }

 private:
  emulator::Options before_ = emulator::options();
};

}  // namespace tq4::gpu
