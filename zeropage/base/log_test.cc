#include "zeropage/base/log.h"

#include <gtest/gtest.h>

#include "zeropage/base/error.h"

namespace zeropage {
namespace {

// Would catch a message that is taken for a format string, or that is written to stdout among a program's output.
TEST(Log, WritesTheMessageAsItIsToStderr) {
  testing::internal::CaptureStderr();
  log_info("100 % of {} and {:d}");
  log_warn("careful");
  const std::string text = testing::internal::GetCapturedStderr();
  EXPECT_NE(text.find("zeropage info: 100 % of {} and {:d}\n"), std::string::npos) << text;
  EXPECT_NE(text.find("zeropage warning: careful\n"), std::string::npos) << text;
}

// Would catch a level that hides lines of the same severity, or that cannot be lowered again.
TEST(Log, LessSevereLinesAreNotWritten) {
  testing::internal::CaptureStderr();
  set_log_level("warning");
  log_info("quiet");
  log_warn("loud");
  set_log_level("error");
  log_warn("quiet, too");
  set_log_level("info");
  log_info("back");
  const std::string text = testing::internal::GetCapturedStderr();
  EXPECT_EQ(text.find("quiet"), std::string::npos) << text;
  EXPECT_NE(text.find("loud"), std::string::npos) << text;
  EXPECT_NE(text.find("back"), std::string::npos) << text;
  EXPECT_THROW(set_log_level("loud"), ConfigError);
}

TEST(Log, WarnOnceWarnsOncePerKeyAndObject) {
  testing::internal::CaptureStderr();
  WarnOnce first, second;
  EXPECT_TRUE(first.warn("a", "first a"));
  EXPECT_FALSE(first.warn("a", "again"));
  EXPECT_TRUE(first.warn("b", "first b"));
  EXPECT_TRUE(second.warn("a", "second a"));
  const std::string text = testing::internal::GetCapturedStderr();
  EXPECT_EQ(text.find("again"), std::string::npos) << text;
  EXPECT_NE(text.find("second a"), std::string::npos) << text;
}

}  // namespace
}  // namespace zeropage
