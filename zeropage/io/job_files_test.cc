#include "zeropage/io/job_files.h"

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <sys/mount.h>
#include <sys/ptrace.h>
#include <sys/wait.h>

#include <csignal>
#include <fstream>
#include <thread>

#include "zeropage/io/test_store.h"

namespace zeropage::io {
namespace {

constexpr std::int64_t kBytes = 1 << 20;

// Would catch a file or a directory that remains after the end of a job.
TEST(JobFile, LeavesNothingBehind) {
  const TestFolder folder;
  {
    const JobFile file(folder.path(), "rank-0", kBytes);
    EXPECT_EQ(folder.entries(), 1) << "the locked directory";
    EXPECT_FALSE(std::filesystem::exists(file.path())) << "the file has no name";
  }
  EXPECT_EQ(folder.entries(), 0);
}

// Would catch a start that deletes files of another job, or files that are not ours.
TEST(JobFile, JobsOnOneFolderDoNotTouchEachOther) {
  const TestFolder folder;
  std::ofstream(folder.path() + "/zeropage-notes.txt") << "the user's own";
  std::filesystem::create_directory(folder.path() + "/zeropage-store-mine");
  std::ofstream(folder.path() + "/zeropage-store-mine/thesis.txt") << "the user's own";
  const JobFile first(folder.path(), "rank-0", kBytes);
  ASSERT_EQ(pwrite(first.descriptor(), std::string(4096, 'x').data(), 0, 0), 0);
  std::vector<std::thread> others;
  for (int i = 0; i < 4; ++i) {
    others.emplace_back([&] {
      for (int k = 0; k < 50; ++k) {
        const JobFile another(folder.path(), "rank-0", 4096);
        EXPECT_TRUE(std::filesystem::exists(std::filesystem::path(another.path()).parent_path()));
      }
    });
  }
  for (std::thread& other : others) other.join();
  EXPECT_TRUE(std::filesystem::exists(std::filesystem::path(first.path()).parent_path()));
  EXPECT_EQ(lseek(first.descriptor(), 0, SEEK_END), kBytes);
  EXPECT_TRUE(std::filesystem::exists(folder.path() + "/zeropage-notes.txt"));
  EXPECT_TRUE(std::filesystem::exists(folder.path() + "/zeropage-store-mine/thesis.txt"));
}

// Would catch a full disk that is found only at step 10,000: the start must fail, with both figures, and must leave no
// files.
TEST(JobFile, AFullDiskIsFoundAtTheStart) {
  const TestFolder folder;
  const std::int64_t free = free_bytes(folder.path());
  ASSERT_GT(free, 0);
  try {
    const JobFile file(folder.path(), "rank-0", free * 2);
    FAIL() << "more than is free was reserved";
  } catch (const IoError& error) {
    EXPECT_NE(std::string(error.what()).find(fmt::format("needs {} bytes", free * 2)), std::string::npos)
        << error.what();
    EXPECT_NE(std::string(error.what()).find("are free"), std::string::npos);
  }
  EXPECT_EQ(folder.entries(), 0);
}

// Would catch a reservation that only sets a size: if two jobs fit alone but not together, the second must be refused.
TEST(JobFile, WhatOneJobReservedIsNotFreeForAnother) {
  const TestFolder folder;
  if (mount("none", folder.path().c_str(), "tmpfs", 0, "size=4m") != 0) GTEST_SKIP() << "mounting is not permitted";
  {
    const JobFile first(folder.path(), "rank-0", 3 * kBytes);
    EXPECT_THROW(JobFile(folder.path(), "rank-1", 3 * kBytes), IoError);
  }
  EXPECT_NO_THROW(JobFile(folder.path(), "rank-1", 3 * kBytes));
  umount(folder.path().c_str());
}

/// Starts a job under ptrace and kills it when it enters its n-th system call. False: it ended before.
bool killed_at(int n, const std::string& folder) {
  const pid_t child = fork();
  if (child == 0) {
    ptrace(PTRACE_TRACEME, 0, nullptr, nullptr);
    raise(SIGSTOP);
    { const JobFile file(folder, "rank-0", kBytes); }
    _exit(0);
  }
  int status = 0;
  waitpid(child, &status, 0);
  for (int stop = 0; !WIFEXITED(status); ++stop) {
    if (stop / 2 == n) {
      kill(child, SIGKILL);
      waitpid(child, &status, 0);
      return true;
    }
    ptrace(PTRACE_SYSCALL, child, nullptr, nullptr);
    waitpid(child, &status, 0);
  }
  return false;
}

// Would catch remains of a killed job that stop the next start, take space, or are never removed.
TEST(JobFile, AfterAKillAtAnySystemCallTheNextStartIsClean) {
  const TestFolder folder;
  int points = 0;
  while (killed_at(points, folder.path())) {
    std::uintmax_t left = 0;
    for (const auto& entry : std::filesystem::recursive_directory_iterator(folder.path())) {
      if (entry.is_regular_file()) left += entry.file_size();
    }
    EXPECT_EQ(left, 0) << "bytes remain after a kill at system call " << points;
    { const JobFile next(folder.path(), "rank-0", kBytes); }
    EXPECT_EQ(folder.entries(), 0) << "after a kill at system call " << points;
    ++points;
  }
  if (points == 0) GTEST_SKIP() << "ptrace is not permitted";
  EXPECT_GT(points, 10);
}

}  // namespace
}  // namespace zeropage::io
