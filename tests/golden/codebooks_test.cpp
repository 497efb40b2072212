// The peers' codebooks: ours of the same kind must equal theirs, or their indices would mean other values.
#include <gtest/gtest.h>

#include <cmath>
#include <string>

#include "golden_file.h"
#include "tq4/codebook.h"

namespace tq4 {
namespace {

void expect_equal(const golden::File& file, const std::string& group, CodebookKind kind, int dim) {
  SCOPED_TRACE(group);
  const auto centroids = file.read<float>(group + "/centroids");
  const auto boundaries = file.read<float>(group + "/boundaries");
  const Codebook book = make_codebook(kind, static_cast<int>(std::lround(std::log2(centroids.size()))), dim);
  ASSERT_EQ(book.centroids.size(), centroids.size());
  ASSERT_EQ(book.boundaries.size(), boundaries.size());
  for (std::size_t i = 0; i < centroids.size(); ++i) EXPECT_NEAR(book.centroids[i], centroids[i], 1e-7);
  for (std::size_t i = 0; i < boundaries.size(); ++i) EXPECT_NEAR(book.boundaries[i], boundaries[i], 1e-7);
}

TEST(GoldenCodebooks, TurboquantVllm) {
  const golden::File file;
  for (const int dim : {64, 96, 128, 256}) {
    for (const int bits : {2, 3, 4}) {
      expect_equal(file, "tqv/d" + std::to_string(dim) + "/b" + std::to_string(bits), CodebookKind::TurboquantVllm, dim);
    }
  }
}

TEST(GoldenCodebooks, Vllm) {
  const golden::File file;
  for (const int dim : {64, 128, 256}) {
    for (const char* preset : {"k8v4", "4bit_nc", "k3v4_nc", "3bit_nc"}) {
      expect_equal(file, std::string("vllm/turboquant_") + preset + "/d" + std::to_string(dim), CodebookKind::Vllm, dim);
    }
  }
}

// The peers' stopping points are part of their format: the exact optimum is measurably elsewhere, so the kinds cannot be merged.
TEST(GoldenCodebooks, PeersAreNotTheOptimum) {
  const double sigma = 1 / std::sqrt(128.0);
  const double exact = make_codebook(CodebookKind::Gaussian, 4, 128).centroids.back() / sigma;
  EXPECT_NEAR(exact, 2.7326, 1e-4);
  EXPECT_NEAR(make_codebook(CodebookKind::TurboquantVllm, 4, 128).centroids.back() / sigma, 2.47243832, 1e-6);
  EXPECT_NEAR(make_codebook(CodebookKind::Vllm, 4, 128).centroids.back() / sigma, 2.73092, 1e-5);
}

}  // namespace
}  // namespace tq4
