#include "zeropage/cli/plan_command.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <filesystem>

#include "zeropage/base/error.h"
#include "zeropage/cli/config_command.h"

namespace zeropage::cli {
namespace {

PlanCommand parsed(const std::string& line) {
  CLI::App app;
  PlanCommand command;
  add_plan_command(app, command);
  app.parse("plan " + line);
  return command;
}

// Catches an option that is parsed and has no effect, and a wrong value that is accepted.
TEST(PlanCommand, OptionsReachThePlan) {
  const std::string text =
      plan_listing(parsed("7B --num_gpus=4 --num_nodes 2 --device A100 --device_memory 20GB --sequence 512"));
  EXPECT_NE(text.find("8 rank(s) on 2 host(s), A100"), std::string::npos) << text;
  EXPECT_NE(text.find("micro batch 1 x 512 tokens"), std::string::npos) << text;
  EXPECT_EQ(plan_listing(parsed("7B --json")).front(), '{');
  EXPECT_THROW(plan_listing(parsed("7B --device_memory 20GB")), ConfigError);  // no device is named
  EXPECT_THROW(parsed("7B --measure --device H100"), CLI::ParseError);
  EXPECT_THROW(parsed(""), CLI::ParseError);
  EXPECT_THROW(plan_listing(parsed("7B --device toaster")), ConfigError);
  EXPECT_THROW(plan_listing(parsed("7B --precision int8")), ConfigError);
}

// Catches a written file that `zeropage config` cannot read, a file of the user's that is overwritten, and a file that
// is written for a plan that does not fit.
TEST(PlanCommand, WritesAConfigurationThatIsReadAndReplacesNone) {
  const std::filesystem::path path =
      std::filesystem::path(testing::TempDir()) / ("plan_" + std::to_string(::getpid()) + ".json");
  const std::string line = "7B --num_gpus 8 --device H100 --accumulation_steps 4 --write " + path.string();
  plan_listing(parsed(line));
  EXPECT_NE(run_config_command({path.string(), 8}).text.find("stage"), std::string::npos);
  EXPECT_THROW(plan_listing(parsed(line)), ConfigError);
  std::filesystem::remove(path);
  EXPECT_THROW(plan_listing(parsed("100T --device 4090 --write " + path.string())), ConfigError);  // nothing fits
  EXPECT_FALSE(std::filesystem::exists(path));
}

}  // namespace
}  // namespace zeropage::cli
