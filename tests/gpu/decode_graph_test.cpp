// A captured decode step stays right while lengths change, and results do not change from run to run.
#include "gpu/decode_harness.h"
#include "tq4/error.h"

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

// A call that begins before the kernel ahead of it has ended gives the bytes of one that waits.
TEST(DecodeGraph, EarlyStartsChangeNothing) {
  TQ4_REQUIRE_DEVICE();
  struct Shape {
    std::vector<int> lengths;
    int q_heads, kv_heads, q_len, window, sinks, recent;
    const char* slots = nullptr;  // a preset in vLLM's pages
  };
  std::vector<int> many;  // more than lanes, empty ones among them
  for (int i = 0; i < 37; ++i) many.push_back(i * i * 7 % 61);
  for (const Shape& shape : {Shape{{2000, 513, 16, 900}, 8, 2, 1, 0, 0, 0}, Shape{{1, 0, 40, 700}, 4, 1, 2, 0, 0, 0},
                             Shape{std::vector<int>(70, 20), 8, 8, 1, 0, 0, 0}, Shape{{1500, 80}, 8, 2, 1, 300, 0, 0},
                             Shape{{1000, 3, 66, 67}, 8, 2, 1, 0, 4, 64}, Shape{{2000, 513, 16, 900}, 8, 2, 1, 0, 0, 0, "vllm:4bit_nc"},
                             Shape{{700, 1, 0, 40}, 8, 2, 2, 300, 0, 0, "vllm:3bit_nc"}, Shape{many, 8, 8, 1, 20, 0, 0, "vllm:4bit_nc"}}) {
    DecodeCase c;
    if (shape.slots) c.spec = shape.slots, c.kind = LayoutKind::Vllm;
    c.lengths = shape.lengths;
    c.q_heads = shape.q_heads, c.kv_heads = shape.kv_heads, c.q_len = shape.q_len, c.window = shape.window;
    c.exact_sinks = shape.sinks, c.exact_window = shape.recent, c.exact_rotated = true;
    DecodeProblem problem(c, 12);
    std::vector<int> shorter = shape.lengths;
    for (int& n : shorter) n = n * 2 / 3;
    for (const std::vector<int>& lengths : {shape.lengths, shorter}) {
      if (shape.recent > 0 && lengths == shorter) continue;  // the ring buffers are of the full lengths
      problem.set_lengths(lengths);
      problem.params().fresh_tokens = -1;
      problem.run();
      const std::vector<std::uint8_t> plain = problem.out();
      EXPECT_LT(problem.errors().out, 2e-3);
      for (const int fresh : {shape.q_len, 0, 1 << 20}) {  // as many as the kernel ahead writes, none, all
        problem.params().fresh_tokens = fresh;
        problem.run();
        EXPECT_EQ(problem.out(), plain) << fresh;
      }
    }
  }
}

// Long pieces are not all equal: the last blocks' are shorter. 52,000 tiles are long for 132 multiprocessors.
TEST(DecodeGraph, LongPieces) {
  TQ4_REQUIRE_DEVICE();
  DecodeCase c;
  c.dim = 64;
  c.q_heads = c.kv_heads = 8;
  c.lengths = {100000, 5, 4000};
  DecodeProblem problem(c, 31);
  problem.params().fresh_tokens = -1;
  problem.run();
  const std::vector<std::uint8_t> plain = problem.out();
  EXPECT_LT(problem.errors().out, 2e-3);
  problem.params().fresh_tokens = 1;
  for (int i = 0; i < 2; ++i) {
    problem.run();
    EXPECT_EQ(problem.out(), plain);
  }
}

TEST(DecodeGraph, RefusesAWrongPromise) {
  TQ4_REQUIRE_DEVICE();
  DecodeProblem problem(DecodeCase{}, 5);
  if (problem.path() != "fused-sm90") GTEST_SKIP() << "the general path begins when all is there";
  problem.params().fresh_tokens = -2;
  EXPECT_THROW(problem.run(), tq4::Error);
}

TEST(DecodeGraph, IsDeterministic) {
  TQ4_REQUIRE_DEVICE();
  DecodeCase exact, slots;
  exact.exact_sinks = 4;
  exact.exact_window = 64;
  slots.spec = "vllm:k3v4_nc";
  slots.kind = LayoutKind::Vllm;
  for (DecodeCase* c : {&exact, &slots}) {
    c->lengths = {4000, 17, 1234};
    DecodeProblem problem(*c, 8);
    problem.run();
    const std::vector<std::uint8_t> first = problem.out();
    for (int i = 0; i < 20; ++i) {
      problem.run();
      ASSERT_EQ(problem.out(), first);
    }
  }
}

}  // namespace
}  // namespace tq4::gpu
