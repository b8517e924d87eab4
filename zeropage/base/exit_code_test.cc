#include "zeropage/base/exit_code.h"

#include <gtest/gtest.h>

#include <stdexcept>

#include "zeropage/base/error.h"

namespace zeropage {
namespace {

// Catches a lost peer that is reported as a bug, so that the job is not started again, and a bug that is reported as a
// lost peer.
TEST(ExitCode, SaysWhatKindOfErrorItWas) {
  EXPECT_EQ(exit_code(ConfigError("")), 64);
  EXPECT_EQ(exit_code(UsageError("")), 64);
  EXPECT_EQ(exit_code(CheckpointError("")), 65);
  EXPECT_EQ(exit_code(IoError("")), 74);
  EXPECT_EQ(exit_code(PeerError("")), 75);
  EXPECT_EQ(exit_code(TimeoutError("")), 75);
  EXPECT_EQ(exit_code(Preempted("")), 0);
  EXPECT_EQ(exit_code(Error("")), 1);
  EXPECT_EQ(exit_code(std::runtime_error(""), kBugExitCode), 70);
}

}  // namespace
}  // namespace zeropage
