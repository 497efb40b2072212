// Page files of earlier versions: what version 1 wrote reads as what is written now, and a version from after this is refused by its number.
#include <gtest/gtest.h>

#include <cstring>

#include "core/units.h"
#include "io/hdf5_handle.h"
#include "io_test.h"
#include "tq4/page_file.h"

namespace tq4 {
namespace {

using test::message_of;
using test::TempFolder;

/// Writes `cache` as a page file and changes its version to `version`.
void write_version(const std::string& path, const PagedLayer& layer, const std::vector<std::uint8_t>& cache, const char* version) {
  const auto writer = create_page_file(path, {}, true);
  writer->write(layer, cache.data());
  writer->commit();
  const io::H5File file(H5Fopen(path.c_str(), H5F_ACC_RDWR, H5P_DEFAULT));
  const io::H5Object root(H5Oopen(file.get(), "/", H5P_DEFAULT));
  ASSERT_GE(H5Adelete(root.get(), "tq4_page_file"), 0);
  const io::H5Type type(H5Tcopy(H5T_C_S1));
  H5Tset_size(type.get(), std::strlen(version));
  const io::H5Space space(H5Screate(H5S_SCALAR));
  const io::H5Attribute made(H5Acreate2(root.get(), "tq4_page_file", type.get(), space.get(), H5P_DEFAULT, H5P_DEFAULT));
  ASSERT_GE(H5Awrite(made.get(), type.get(), version), 0);
}

TEST(PageFile, ReadsWhatVersionOneWrote) {
  const TempFolder folder;
  for (const char* name : {"tq3", "k4v3", "tq4"}) {
    PagedLayer layer;
    layer.layout = make_layout(LayoutKind::Native, spec_from_name(name), 2, 128, 32);
    layer.num_blocks = 3;
    layer.block_table = {2, 0, 1};
    layer.blocks_per_seq = 3;
    layer.seq_lens = {70};
    std::vector<std::uint8_t> cache(static_cast<std::size_t>(3 * layer.layout.block_stride));
    for (std::size_t i = 0; i < cache.size(); ++i) cache[i] = static_cast<std::uint8_t>(i * 2654435761u >> 13);
    std::vector<std::uint8_t> units = cache;  // what the bytes mean, were they rows
    core::rows_to_units(layer.layout, units.data(), 3);
    EXPECT_EQ(units == cache, std::string(name) == "tq4");
    write_version(folder / "pages.h5", layer, cache, "1");
    EXPECT_EQ(open_page_file(folder / "pages.h5")->read(0), units) << name;
    write_version(folder / "pages.h5", layer, cache, "2");
    EXPECT_EQ(open_page_file(folder / "pages.h5")->read(0), cache) << name;
    write_version(folder / "pages.h5", layer, cache, "3");
    EXPECT_NE(message_of([&] { open_page_file(folder / "pages.h5"); }).find("version 3"), std::string::npos);
  }
}

}  // namespace
}  // namespace tq4
