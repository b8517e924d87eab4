#include "zeropage/report/append_file.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>

#include "zeropage/base/error.h"

namespace zeropage::report {
namespace {

class Append : public testing::Test {
 protected:
  /// The content of a file with the content `before` after a line was added.
  std::string after_a_line(const std::string& before) const {
    std::ofstream(path_, std::ios::binary | std::ios::trunc) << before;
    AppendFile(path_, "head,").write("new\n");
    std::stringstream text;
    text << std::ifstream(path_, std::ios::binary).rdbuf();
    return text.str();
  }

  ~Append() override { std::filesystem::remove(path_); }

  const std::string path_ = testing::TempDir() + "zp-append-file" + std::to_string(::getpid());
};

// Catches the first line of a restart that is appended to an incomplete one, so that both are lost; and a foreign file
// that is truncated.
TEST_F(Append, MendsWhatAKillHasTorn) {
  EXPECT_EQ(after_a_line(""), "new\n");
  EXPECT_EQ(after_a_line("head,x\n1,2\n"), "head,x\n1,2\nnew\n");
  EXPECT_EQ(after_a_line("head,x\n1,2"), "head,x\nnew\n");
  EXPECT_EQ(after_a_line("head,x"), "new\n");
  EXPECT_EQ(after_a_line("he"), "new\n");
  EXPECT_EQ(after_a_line("a letter to mother"), "a letter to mother\nnew\n");
  const std::string lines = "head,x\n" + std::string(100'000, '\n');
  EXPECT_EQ(after_a_line(lines + std::string(200'000, '1')), lines + "new\n");
}

// Catches a full disk that ends the run, and an impossible path that is not reported when the file is opened.
TEST_F(Append, AFullDiskIsSaidOnceAndAWrongPathAtOnce) {
  testing::internal::CaptureStderr();
  {
    AppendFile full("/dev/full", "head,");
    for (int i = 0; i < 3; ++i) full.write("new\n");
  }
  const std::string said = testing::internal::GetCapturedStderr();
  const std::string first = "/dev/full: metrics cannot be written: No space left on device";
  EXPECT_NE(said.find(first), said.npos) << said;
  EXPECT_EQ(said.find(first, said.find(first) + 1), said.npos) << said;
  EXPECT_NE(said.find("/dev/full: 3 lines of metrics could not be written"), said.npos) << said;
  EXPECT_THROW(AppendFile("/dev/null/run.jsonl", "head,"), IoError);
}

}  // namespace
}  // namespace zeropage::report
