// InputFile: the way past the page cache gives the bytes that the plain way gives, wherever a piece begins and ends and whatever is cached.
#include "io/file.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <random>

#include "io_test.h"

namespace tq4 {
namespace {

/// Writes the file through to the disk and asks the system to forget its pages (tmpfs has nowhere else to keep them, and does not).
void evict(const std::string& path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  ASSERT_GE(fd, 0);
  ::fsync(fd);
  ::posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
  ::close(fd);
}

TEST(InputFile, ReadOnceGivesTheBytesOfTheFile) {
  const test::TempFolder folder;
  std::string bytes((std::size_t{5} << 20) + 1234, '\0');
  std::mt19937_64 random(3);
  for (std::size_t i = 0; i + 8 <= bytes.size(); i += 8) {
    const std::uint64_t word = random();
    bytes.replace(i, 8, reinterpret_cast<const char*>(&word), 8);
  }
  const std::string path = folder / "bytes";
  test::write_file(path, bytes);
  const std::size_t size = bytes.size();
  for (const bool cached : {false, true}) {
    for (const auto& [offset, count] : std::vector<std::pair<std::size_t, std::size_t>>{{0, size},
                                                                                        {1, size - 1},
                                                                                        {4096, 1 << 20},
                                                                                        {4095, (2 << 20) + 2},
                                                                                        {size - 300001, 300001},
                                                                                        {777, 262144},
                                                                                        {5, 10},
                                                                                        {size, 0}}) {
      if (!cached) evict(path);
      const io::InputFile file(path, true);
      std::string read(count, 'x');
      file.read_once_at(offset, read.data(), count);
      EXPECT_TRUE(bytes.compare(offset, count, read) == 0) << offset << " + " << count << (cached ? " cached" : "");
      io::InputFile source(path, true);
      const io::InputFile moved(std::move(source));
      std::string again(count, 'x');
      moved.read_once_at(offset, again.data(), count);
      EXPECT_TRUE(again == read);
    }
  }
  const io::InputFile file(path, true);
  std::string read(size, 'x');
  EXPECT_NE(test::message_of([&] { file.read_once_at(1, read.data(), size); }).find("was cut short"), std::string::npos);
  // Cut after it was opened.
  ASSERT_EQ(::truncate(path.c_str(), 1 << 20), 0);
  EXPECT_NE(test::message_of([&] { file.read_once_at(0, read.data(), size); }).find("became shorter"), std::string::npos);
}

}  // namespace
}  // namespace tq4
