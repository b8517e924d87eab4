#include "zeropage/base/read_file.h"

#include <gtest/gtest.h>
#include <sys/stat.h>

#include <cstdio>
#include <fstream>
#include <thread>

#include "zeropage/base/error.h"

namespace zeropage {
namespace {

// Catches a file that is cut at the end of a read, a limit that is exceeded, and errors without reason or advice.
TEST(ReadFile, ReadsUpToALimitAndSaysWhatCannotBeRead) {
  const std::string path = testing::TempDir() + "zp-read-file";
  std::string text;
  for (int i = 0; i < 200'000; ++i) text.push_back(static_cast<char>(i));
  std::ofstream(path, std::ios::binary) << text;
  EXPECT_EQ(read_file(path, "x", "y"), text);
  EXPECT_EQ(read_start(path, "x", "y", 70'000), text.substr(0, 70'000));
  EXPECT_EQ(read_file(path, "x", "y", text.size()), text);
  std::ofstream(path, std::ios::trunc).close();
  EXPECT_EQ(read_file(path, "x", "y"), "");
  std::remove(path.c_str());
  const auto message = [&](const std::string& of) -> std::string {
    try {
      return read_file(of, "the list", "make it a file");
    } catch (const IoError& error) {
      return error.what();
    }
  };
  EXPECT_EQ(message(path), "cannot read the list " + path + ": No such file or directory; make it a file");
  EXPECT_EQ(message("/"), "cannot read the list /: Is a directory; make it a file");
}

// Catches a read that fills the memory, an endless wait for a pipe, and a pipe that is mistaken for an empty file.
TEST(ReadFile, EndsWithWhatHasNoEnd) {
  const auto error_of = [](const std::string& path, std::size_t max_bytes) -> std::string {
    try {
      read_file(path, "the list", "make it a file", max_bytes, std::chrono::milliseconds(200));
    } catch (const Error& error) {
      return error.what();
    }
    return "no error";
  };
  EXPECT_EQ(error_of("/dev/zero", 100'000),
            "cannot read the list /dev/zero: expected at most 100000 bytes, got more; is this the right file?");
  const std::string path = testing::TempDir() + "zp-read-pipe";
  ASSERT_EQ(mkfifo(path.c_str(), 0600), 0);
  const std::string late = "it is a pipe that did not end within 200 ms; make it a file";
  EXPECT_EQ(error_of(path, 100'000), "cannot read the list " + path + ": " + late);
  std::thread writer([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    std::ofstream(path) << std::string(100'000, 'x');
  });
  EXPECT_EQ(read_file(path, "x", "y"), std::string(100'000, 'x'));
  writer.join();
  std::remove(path.c_str());
}

}  // namespace
}  // namespace zeropage
