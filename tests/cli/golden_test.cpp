// `tq4 convert` against page caches that other implementations wrote (tests/golden/data): their pages to a container and back are the same
// bytes, and their inputs compressed here become their pages, but for codes of coordinates that lie on a boundary.
#include <gtest/gtest.h>

#include <cstdio>

#include "../golden/golden_file.h"
#include "process.h"

namespace tq4::cli_test {
namespace {

struct Case {
  std::string name, pages, inputs;  ///< groups of the golden file
  std::string layout, codec;
  int dim;
};

std::vector<Case> cases() {
  std::vector<Case> out;
  for (const int dim : {64, 96, 128, 256}) {
    const std::string d = "d" + std::to_string(dim);
    out.push_back({"turboquant_vllm_" + d, "tqv/" + d + "/page", "tqv/" + d + "/b4", "turboquant-vllm", "turboquant-vllm", dim});
    if (dim == 96) continue;
    for (const char* preset : {"k8v4", "4bit_nc", "k3v4_nc", "3bit_nc"}) {
      const std::string group = std::string("vllm/turboquant_") + preset + "/" + d;
      out.push_back({std::string("vllm_") + preset + "_" + d, group, group, "vllm", std::string("vllm:") + preset, dim});
    }
  }
  return out;
}

template <class T>
void put(hid_t file, const char* name, hid_t type, const golden::Array<T>& array) {
  const std::vector<hsize_t> extent(array.shape.begin(), array.shape.end());
  const hid_t space = H5Screate_simple(static_cast<int>(extent.size()), extent.data(), nullptr);
  const hid_t set = H5Dcreate2(file, name, type, space, H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT);
  EXPECT_GE(H5Dwrite(set, type, H5S_ALL, H5S_ALL, H5P_DEFAULT, array.data.data()), 0) << name;
  H5Dclose(set);
  H5Sclose(space);
}

class GoldenPages : public testing::TestWithParam<Case> {
 protected:
  /// Pages from a container, placed as in the golden file.
  golden::Array<std::uint8_t> pages_of(const std::string& container) {
    std::string table;
    for (const std::int32_t page : block_table_.data) table += (table.empty() ? "" : ",") + std::to_string(page);
    const Result result = run_program({"convert", container, "--layout", GetParam().layout, "--block-table", table, "--num-blocks",
                                       std::to_string(cache_.shape[0]), "-o", scratch_.path("pages.h5"), "--force"});
    EXPECT_EQ(result.status, 0) << result.err;
    return golden::File(scratch_.path("pages.h5")).read<std::uint8_t>("layer_000/cache");
  }

  const golden::File file_;
  const Scratch scratch_;
  const golden::Array<std::uint8_t> cache_ = file_.read<std::uint8_t>(GetParam().pages + "/cache");
  const golden::Array<std::int32_t> block_table_ = file_.read<std::int32_t>(GetParam().pages + "/block_table");
};

TEST_P(GoldenPages, ToAContainerAndBackIsTheSameBytes) {
  const std::string foreign = scratch_.path("foreign.h5");
  const hid_t out = H5Fcreate(foreign.c_str(), H5F_ACC_TRUNC, H5P_DEFAULT, H5P_DEFAULT);
  put(out, "cache", H5T_NATIVE_UINT8, cache_);
  put(out, "block_table", H5T_NATIVE_INT32, block_table_);
  put(out, "seq_lens", H5T_NATIVE_INT32, file_.read<std::int32_t>(GetParam().pages + "/seq_lens"));
  H5Fclose(out);
  std::vector<std::string> arguments{"convert",
                                     foreign,
                                     "--from-layout",
                                     GetParam().layout,
                                     "--codec",
                                     GetParam().codec,
                                     "--head-dim",
                                     std::to_string(GetParam().dim),
                                     "-o",
                                     scratch_.path("a.tq4")};
  if (GetParam().layout == "turboquant-vllm") arguments.insert(arguments.end(), {"--kv-heads", "2"});
  const Result result = run_program(arguments);
  ASSERT_EQ(result.status, 0) << result.err;
  const auto back = pages_of(scratch_.path("a.tq4"));
  ASSERT_EQ(back.shape, cache_.shape);
  EXPECT_TRUE(back.data == cache_.data);
}

TEST_P(GoldenPages, TheirInputsBecomeTheirBytes) {
  std::vector<Array> layer;
  for (const char* side : {"k", "v"}) {
    const auto x = file_.read<float>(GetParam().inputs + "/" + side);  // [tokens, heads, dim]
    const std::size_t tokens = x.shape[0], heads = x.shape[1], dim = x.shape[2];
    Array array{
        std::string("layer_000.") + side, {static_cast<std::int64_t>(heads), static_cast<std::int64_t>(tokens), GetParam().dim}, {}};
    for (std::size_t h = 0; h < heads; ++h) {
      for (std::size_t t = 0; t < tokens; ++t) {
        for (std::size_t j = 0; j < dim; ++j) array.values.push_back(x.data[(t * heads + h) * dim + j]);
      }
    }
    layer.push_back(std::move(array));
  }
  write_file(scratch_.path("d.safetensors"), safetensors(layer));
  const Result result =
      run_program({"compress", scratch_.path("d.safetensors"), "--codec", GetParam().codec, "-o", scratch_.path("a.tq4")});
  ASSERT_EQ(result.status, 0) << result.err;
  const auto pages = pages_of(scratch_.path("a.tq4"));
  ASSERT_EQ(pages.shape, cache_.shape);
  std::size_t differing = 0;
  for (std::size_t i = 0; i < pages.size(); ++i) {
    // The file's FP8 keys were rounded by Triton's interpreter, as no GPU does: only the values of those slots are compared.
    const bool fp8_key = GetParam().codec == "vllm:k8v4" && i % pages.shape[3] < static_cast<std::size_t>(GetParam().dim);
    differing += !fp8_key && pages[i] != cache_[i] ? 1 : 0;
  }
  std::printf("%-24s %zu of %zu bytes differ, each by the code of a coordinate on a boundary (golden_pages checks them one by one)\n",
              GetParam().name.c_str(), differing, pages.size());
  EXPECT_LE(differing, pages.size() / 1000);
}

INSTANTIATE_TEST_SUITE_P(Peers, GoldenPages, testing::ValuesIn(cases()), [](const auto& c) { return c.param.name; });

}  // namespace
}  // namespace tq4::cli_test
