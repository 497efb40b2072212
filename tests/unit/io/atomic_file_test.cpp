// AtomicFile: old file or new file, never half; nothing left behind, also when a signal handler has to clean up.
#include <gtest/gtest.h>

#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <csignal>

#include "io_test.h"
#include "tq4/container.h"

namespace tq4 {
namespace {

using test::code_of;
using test::read_file;
using test::TempFolder;
using test::write_file;

TEST(AtomicFile, AppearsOnCommitOnly) {
  const TempFolder folder;
  {
    AtomicFile file(folder / "x", false);
    file.write("hello ", 6);
    file.write("world", 5);
    file.write_at(0, "J", 1);
    EXPECT_FALSE(std::filesystem::exists(folder / "x"));
    file.commit();
    EXPECT_EQ(read_file(folder / "x"), "Jello world");
  }
  EXPECT_EQ(read_file(folder / "x"), "Jello world");
  { AtomicFile dropped(folder / "y", false); }
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(folder.path()), {}), 1);
}

TEST(AtomicFile, OverwritesOnlyWhenAllowed) {
  const TempFolder folder;
  write_file(folder / "x", "old");
  ::chmod((folder / "x").c_str(), 0640);
  EXPECT_EQ(code_of([&] { AtomicFile file(folder / "x", false); }), ErrorCode::Usage);
  AtomicFile file(folder / "x", true);
  file.write("new", 3);
  EXPECT_EQ(read_file(folder / "x"), "old");
  file.commit();
  EXPECT_EQ(read_file(folder / "x"), "new");
  struct stat status {};
  ::stat((folder / "x").c_str(), &status);
  EXPECT_EQ(status.st_mode & 0777u, 0640u);
}

TEST(AtomicFile, LosesTheRaceRatherThanAFile) {
  const TempFolder folder;
  AtomicFile file(folder / "x", false);
  file.write("mine", 4);
  write_file(folder / "x", "theirs");
  EXPECT_EQ(code_of([&] { file.commit(); }), ErrorCode::Usage);
  EXPECT_EQ(read_file(folder / "x"), "theirs");
}

TEST(AtomicFile, ReplacesWhatALinkPointsTo) {
  const TempFolder folder;
  write_file(folder / "target", "old");
  std::filesystem::create_symlink("target", folder / "link");
  AtomicFile file(folder / "link", true);
  file.write("new", 3);
  file.commit();
  EXPECT_EQ(read_file(folder / "target"), "new");
  EXPECT_TRUE(std::filesystem::is_symlink(folder / "link"));
}

TEST(AtomicFile, RefusesWhatIsNoFile) {
  const TempFolder folder;
  EXPECT_EQ(code_of([&] { AtomicFile file(folder.path(), true); }), ErrorCode::Usage);
  EXPECT_EQ(code_of([&] { AtomicFile file("/dev/null", true); }), ErrorCode::Usage);
  EXPECT_EQ(code_of([&] { AtomicFile file("", true); }), ErrorCode::Usage);
  EXPECT_EQ(code_of([&] { AtomicFile file(folder / "missing/x", true); }), ErrorCode::Runtime);
}

TEST(AtomicFile, FullDiskIsARuntimeError) {
  const TempFolder folder;
  const pid_t child = ::fork();
  ASSERT_GE(child, 0);
  if (child == 0) {  // a limit on file size stands for the full disk
    std::signal(SIGXFSZ, SIG_IGN);
    const rlimit limit{4096, 4096};
    ::setrlimit(RLIMIT_FSIZE, &limit);
    const auto code = code_of([&] {
      AtomicFile file(folder / "x", false);
      const std::string much(100000, 'x');
      file.write(much.data(), much.size());
    });
    ::_exit(code == ErrorCode::Runtime ? 0 : 1);
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  EXPECT_EQ(status, 0);
  EXPECT_TRUE(folder.empty());
}

TEST(AtomicFile, SignalHandlerRemovesTemporaries) {
  const TempFolder folder;
  const pid_t child = ::fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    std::signal(SIGTERM, [](int) {
      AtomicFile::remove_all_temporaries();
      ::_exit(0);
    });
    AtomicFile a(folder / "a", false), b(folder / "b", false);
    a.write("x", 1);
    if (folder.empty()) ::_exit(1);
    ::raise(SIGTERM);
    ::_exit(2);
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  EXPECT_EQ(status, 0);
  EXPECT_TRUE(folder.empty());
}

TEST(AtomicFile, TableOfTemporariesIsReused) {
  const TempFolder folder;
  for (int i = 0; i < 200; ++i) AtomicFile(folder / "x", true).write("x", 1);
  EXPECT_TRUE(folder.empty());
  const std::string longest(255, 'n');
  AtomicFile file(folder / longest, false);
  file.commit();
  EXPECT_TRUE(std::filesystem::exists(folder / longest));
}

}  // namespace
}  // namespace tq4
