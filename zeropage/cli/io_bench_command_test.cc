#include "zeropage/cli/io_bench_command.h"

#include <gtest/gtest.h>
#include <stdlib.h>

#include <CLI/CLI.hpp>
#include <filesystem>

#include "zeropage/base/error.h"
#include "zeropage/cli/config_command.h"

namespace zeropage::cli {
namespace {

// Would catch a recommendation that the configuration refuses, and files that remain in the folder.
TEST(IoBenchCommand, WritesAConfigurationThatIsReadAndReplacesNone) {
  std::string folder = testing::TempDir() + "/zp-bench-XXXXXX";
  ASSERT_NE(mkdtemp(folder.data()), nullptr);
  const std::string file = folder + "/best.json";
  CLI::App app;
  IoBenchCommand command;
  add_io_bench_command(app, command);
  app.parse("io-bench " + folder + " --quick --size_mib 64 --rounds 1 --write " + file);
  std::string text;
  const auto print = [&](const std::string& line) { text += line; };
  run_io_bench(command, print);
  EXPECT_NE(text.find("\"aio\": {\"block_size\": "), std::string::npos) << text;
  EXPECT_NE(run_config_command({file, 1}).text.find("queue_depth"), std::string::npos);
  EXPECT_THROW(run_io_bench(command, print), ConfigError) << "it exists";
  std::filesystem::remove(file);
  EXPECT_TRUE(std::filesystem::is_empty(folder));
  std::filesystem::remove_all(folder);
  EXPECT_THROW(run_io_bench(command, print), IoError) << "no such folder";
}

}  // namespace
}  // namespace zeropage::cli
