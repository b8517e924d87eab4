#include "zeropage/base/read_file.h"

#include <gtest/gtest.h>

#include <cstdio>
#include <fstream>

#include "zeropage/base/error.h"

namespace zeropage {
namespace {

// Catches a file that is cut at a piece's end, a limit that is not kept, and errors without reason or advice.
TEST(ReadFile, ReadsUpToALimitAndSaysWhatCannotBeRead) {
  const std::string path = testing::TempDir() + "zp-read-file";
  std::string text;
  for (int i = 0; i < 200'000; ++i) text.push_back(static_cast<char>(i));
  std::ofstream(path, std::ios::binary) << text;
  EXPECT_EQ(read_file(path, "x", "y"), text);
  EXPECT_EQ(read_file(path, "x", "y", 70'000), text.substr(0, 70'000));
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

}  // namespace
}  // namespace zeropage
