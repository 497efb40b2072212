// A captured decode step stays right while lengths change, and results do not change from run to run.
#include "gpu/decode_harness.h"

namespace tq4::gpu {
namespace {

TEST(DecodeGraph, ReplaysWithChangingLengths) {
  TQ4_REQUIRE_DEVICE();
  for (const char* spec : {"tq4", "k8v4"}) {
    DecodeCase c;
    c.spec = spec;
    c.lengths = {2000, 513, 16, 900};
    c.exact_sinks = c.exact_window = 0;
    DecodeProblem problem(c, 4);
    problem.run();
    cudaStream_t stream;
    cuda_ok(cudaStreamCreate(&stream));
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    cuda_ok(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
    decode(problem.codec(), problem.params(), stream);
    cuda_ok(cudaStreamEndCapture(stream, &graph));
    cuda_ok(cudaGraphInstantiate(&exec, graph, 0));
    for (const std::vector<int>& lengths : {std::vector<int>{2000, 513, 16, 900}, std::vector<int>{1, 2, 3, 4},
                                            std::vector<int>{1999, 0, 15, 17}, std::vector<int>{2000, 513, 16, 900}}) {
      problem.set_lengths(lengths);
      problem.run();
      const std::vector<std::uint8_t> direct = problem.out();
      for (int repeat = 0; repeat < 3; ++repeat) {
        cuda_ok(cudaMemset(problem.params().out, 0xff, direct.size()));
        cuda_ok(cudaGraphLaunch(exec, stream));
        cuda_ok(cudaStreamSynchronize(stream));
        EXPECT_EQ(problem.out(), direct);
      }
      const DecodeErrors e = problem.errors();
      EXPECT_TRUE(e.finite);
      EXPECT_LT(e.out, 2e-3);
    }
    cudaGraphExecDestroy(exec);
    cudaGraphDestroy(graph);
    cudaStreamDestroy(stream);
  }
}

TEST(DecodeGraph, IsDeterministic) {
  TQ4_REQUIRE_DEVICE();
  DecodeCase c;
  c.lengths = {4000, 17, 1234};
  c.exact_sinks = 4;
  c.exact_window = 64;
  DecodeProblem problem(c, 8);
  problem.run();
  const std::vector<std::uint8_t> first = problem.out();
  for (int i = 0; i < 20; ++i) {
    problem.run();
    ASSERT_EQ(problem.out(), first);
  }
}

}  // namespace
}  // namespace tq4::gpu
