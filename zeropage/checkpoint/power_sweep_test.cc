// Tests with a power failure before every system call of a save that changes files, on a real file system: ext4 in a
// file, mounted through a loop device and shut down without writing its journal, which loses the same data as a power
// cut.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/ioctl.h>

#include <cstdlib>
#include <cstring>
#include <iostream>

#include "zeropage/checkpoint/test_sweep.h"

namespace zeropage::checkpoint {
namespace {

constexpr std::int64_t kImageBytes = std::int64_t{8} << 20;
constexpr std::int64_t kLargeRows = 2'000'000;                      // 24 MB: written with direct I/O
constexpr unsigned long kShutdown = _IOR('X', 125, std::uint32_t);  // EXT4_IOC_SHUTDOWN
constexpr std::uint32_t kWithoutJournal = 2;                        // EXT4_GOING_FLAGS_NOLOGFLUSH

bool run(const std::string& command) { return std::system((command + " >/dev/null 2>&1").c_str()) == 0; }

/// An ext4 file system in a file.
class Image {
 public:
  explicit Image(const std::string& folder, std::int64_t bytes = kImageBytes)
      : image_(folder + "/image"), base_(folder + "/base"), mount_(folder + "/m") {
    std::ofstream(base_).put(0);
    std::filesystem::resize_file(base_, bytes);
    std::filesystem::create_directory(mount_);
    made_ = run("PATH=$PATH:/sbin:/usr/sbin mkfs.ext4 -q -F " + base_);
  }
  ~Image() { unmount(); }
  Image(const Image&) = delete;

  bool made() const { return made_; }
  const std::string& path() const { return mount_; }

  /// Restores the image from the base.
  void reset() { std::filesystem::copy_file(base_, image_, std::filesystem::copy_options::overwrite_existing); }
  /// Copies the image to the base.
  void keep() { std::filesystem::copy_file(image_, base_, std::filesystem::copy_options::overwrite_existing); }
  bool mount() { return mounted_ = run("mount -t ext4 -o loop " + image_ + " " + mount_); }
  void unmount() {
    for (int attempt = 0; mounted_ && attempt < 100; ++attempt) {
      mounted_ = !run("umount " + mount_);
      if (mounted_) std::this_thread::sleep_for(std::chrono::milliseconds(20));
    }
  }
  void cut_power() {
    const int folder = open(mount_.c_str(), O_RDONLY | O_DIRECTORY);
    auto flags = kWithoutJournal;
    ASSERT_EQ(ioctl(folder, kShutdown, &flags), 0) << std::strerror(errno);
    close(folder);
  }

 private:
  std::string image_, base_, mount_;
  bool made_ = false;
  bool mounted_ = false;
};

/// Whether a call changes files. A power cut before any other call has the same result as before the next one of these.
bool changes_files(long call) { return concerns_files(call) && call != SYS_close && call != SYS_flock; }

// Catches a missing sync, or an order of operations that is not guaranteed after a crash.
TEST(PowerSweep, BeforeAnyCallThatChangesFilesTheOldOrTheNewStepLoads) {
  const TestFolder folder(memory_folder());
  Image image(folder.path());
  image.reset();
  if (!image.made() || !image.mount())
    GTEST_SKIP() << "mkfs.ext4 and mounts through loop devices are not permitted here";
  const std::string steps = image.path() + "/c";
  save_alone(system_files(), steps, "old", 1);
  image.unmount();
  image.keep();
  std::map<long, int> counts;
  int points = 0;
  for (const SweepCase& scenario : kSweepCases) {
    for (int at = 0, stopped = 1; stopped != 0; ++at, ++points) {
      image.reset();
      ASSERT_TRUE(image.mount());
      TracedProcess child([&] {
        auto communicators = comm::make_thread_communicators(1, kTestTimeout);
        save(system_files(), *communicators[0], request_of(scenario, steps, 0, 1));
        acknowledge(folder.path(), 0);
      });
      if (!child.permitted()) GTEST_SKIP() << "ptrace is not permitted here";
      long number = -1;
      stopped = child.run_to_call(
          [&, left = at](long call) mutable { return changes_files(call) && (number = call, left-- == 0); });
      image.cut_power();
      child.kill();
      image.unmount();
      ASSERT_TRUE(image.mount());
      ASSERT_EQ(problem_after_crash(steps, acknowledged(folder.path(), 0)), "")
          << scenario.tag << ", keep_last " << scenario.keep_last << ", cut before call " << at << " (" << number
          << ")";
      image.unmount();
      if (stopped != 0) ++counts[number];
    }
  }
  std::cout << points << " power cuts: " << listing(counts) << "\n";
  EXPECT_GT(points, 50);
}

// Catches data of a large file that is not durable when the save has returned.
TEST(PowerSweep, ALargeStepIsThereOnceItsSaveHasReturned) {
  const TestFolder folder(memory_folder());
  Image image(folder.path(), 10 * kImageBytes);
  image.reset();
  if (!image.made() || !image.mount())
    GTEST_SKIP() << "mkfs.ext4 and mounts through loop devices are not permitted here";
  auto communicators = comm::make_thread_communicators(1, kTestTimeout);
  save(system_files(), *communicators[0], request_for(image.path(), "large", 0, 1, 2, kLargeRows));
  image.cut_power();
  image.unmount();
  ASSERT_TRUE(image.mount());
  EXPECT_EQ(newest_content(image.path()), 2);
}

}  // namespace
}  // namespace zeropage::checkpoint
