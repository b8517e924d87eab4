#include "zeropage/launch/options.h"

#include <algorithm>

#include <gtest/gtest.h>

#include <CLI/CLI.hpp>

#include "zeropage/base/error.h"

namespace zeropage::launch {
namespace {

LaunchOptions parse(std::vector<std::string> words) {
  CLI::App app;
  LaunchOptions options;
  add_launch_options(app, options);
  std::reverse(words.begin(), words.end());  // the order that CLI11 expects in vectors
  app.parse(words);
  finish_launch_options(app, options);
  return options;
}

std::string options_error(std::vector<std::string> words) {
  try {
    parse(std::move(words));
  } catch (const ConfigError& error) {
    return error.what();
  }
  return "no error";
}

using Words = std::vector<std::string>;

TEST(LaunchOptions, DefaultsAreTheReferences) {
  const LaunchOptions options = parse({"train.py"});
  EXPECT_EQ(options.script, "train.py");
  EXPECT_FALSE(options.num_ranks);
  EXPECT_EQ(options.master_port, 29500);
  EXPECT_EQ(options.master_addr + options.launcher + options.include, "");
  EXPECT_EQ(options.hostfile, "/job/hostfile");
  EXPECT_FALSE(options.module || options.no_python || options.no_local_rank || options.bind_cores);
}

// Catches a launcher that parses the script's arguments: scripts may have options of the same names.
TEST(LaunchOptions, EverythingAfterTheScriptIsTheScripts) {
  const Words rest = {"--num_gpus", "7", "--help",          "-x",  "--", "a b", "\"quoted\"",
                      "two\nlines", "",  "--master_port=1", "x.py"};
  Words words = {"--num_gpus=2", "--master_port", "1234", "train.py"};
  words.insert(words.end(), rest.begin(), rest.end());
  const LaunchOptions options = parse(words);
  EXPECT_EQ(options.num_ranks, 2);
  EXPECT_EQ(options.master_port, 1234);
  EXPECT_EQ(options.script, "train.py");
  EXPECT_EQ(options.script_args, rest);
}

TEST(LaunchOptions, BothNamesAndMinusOne) {
  EXPECT_EQ(parse({"--num_accelerators", "3", "a.py"}).num_ranks, 3);
  EXPECT_FALSE(parse({"--num_gpus", "-1", "a.py"}).num_ranks);
  EXPECT_TRUE(parse({"--bind_core_list", "0-3", "a.py"}).bind_cores);
  EXPECT_FALSE(parse({"--num_nodes", "-1", "a.py"}).num_nodes);
  EXPECT_EQ(parse({"--enable_each_rank_log", "logs", "a.py"}).log_dir, "logs");
  EXPECT_EQ(parse({"--enable_each_rank_log", "None", "a.py"}).log_dir, "");
  EXPECT_TRUE(parse({"--log_level", "error", "a.py"}).quiet);
}

TEST(LaunchOptions, ErrorsSayWhatToDo) {
  EXPECT_NE(options_error({"--num_gpu", "2", "a.py"}).find("did you mean --num_gpus?"), std::string::npos);
  EXPECT_NE(options_error({"--elastic_training", "a.py"}).find("not built yet"), std::string::npos);
  EXPECT_NE(options_error({"--autotuning", "run", "a.py"}).find("not built yet"), std::string::npos);
  EXPECT_NE(options_error({"--launcher", "mvapich", "a.py"}).find("not built"), std::string::npos);
  EXPECT_NE(options_error({"--num_nodes", "0", "a.py"}).find("expected 1 or more"), std::string::npos);
  EXPECT_NE(options_error({"--num_gpus", "2"}).find("no script"), std::string::npos);
  EXPECT_NE(options_error({"--num_gpus", "0", "a.py"}).find("expected 1 or more"), std::string::npos);
  EXPECT_NE(options_error({"--module", "--no_python", "a"}).find("give one of them"), std::string::npos);
}

// Catches a compiled program that is run with python, which would report a syntax error.
TEST(LaunchOptions, ACompiledProgramNeedsNoPython) {
  EXPECT_TRUE(parse({"/proc/self/exe"}).no_python);
  EXPECT_FALSE(parse({"--module", "/proc/self/exe"}).no_python);
  EXPECT_FALSE(parse({"/proc/self/cmdline"}).no_python);
}

// Catches an additional argument, which would shift positional arguments of the program.
TEST(LaunchOptions, ACompiledProgramGetsTheUsersArgumentsAlone) {
  EXPECT_TRUE(parse({"/proc/self/exe", "data", "3"}).no_local_rank);
  EXPECT_FALSE(parse({"--no_python", "/proc/self/exe"}).no_local_rank);
  EXPECT_FALSE(parse({"train.py"}).no_local_rank);
}

}  // namespace
}  // namespace zeropage::launch
