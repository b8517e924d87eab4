#include "zeropage/launch/exports.h"

#include <gtest/gtest.h>

#include "zeropage/base/error.h"

namespace zeropage::launch {
namespace {

// Catches a file that is refused for blank lines or comments (DeepSpeed's launcher crashes on them), and a first value
// that wins over the last.
TEST(EnvironmentFile, BlankLinesCommentsAndValues) {
  EXPECT_EQ(parse_environment_file("\n# note\n  A=1 2=3 \r\n\t\nB=\nA=last", "env"),
            Variables({{"A", "last"}, {"B", ""}}));
}

// Catches a wrong line that is skipped, and a secret that is printed in the error.
TEST(EnvironmentFile, BadLinesAreNamedAndNotShown) {
  for (const char* line : {"secret", "1A=secret", "A B=secret", "export A=secret", "=secret", "-A=secret"}) {
    try {
      parse_environment_file(std::string("GOOD=1\n") + line + "\n", "env");
      ADD_FAILURE() << line;
    } catch (const ConfigError& error) {
      EXPECT_EQ(std::string(error.what()).rfind("env:2: ", 0), 0u);
      EXPECT_EQ(std::string(error.what()).find("secret"), std::string::npos);
    }
  }
}

// Catches variables that other hosts need and do not get, and private ones that they get.
TEST(Exports, KnownPrefixesAndThePythonPath) {
  const Variables variables = exported_variables(
      {"NCCL_DEBUG=INFO", "PYTHONPATH=/x", "HOME=/root", "UCX_A=1", "MV2_B=", "MLFLOW_C=2", "NCCL", "PYTHONHASHSEED=0"},
      "/w");
  EXPECT_EQ(variables, Variables({{"NCCL_DEBUG", "INFO"},
                                  {"UCX_A", "1"},
                                  {"MV2_B", ""},
                                  {"MLFLOW_C", "2"},
                                  {"PYTHONHASHSEED", "0"},
                                  {"PYTHONPATH", "/w:/x"}}));
}

}  // namespace
}  // namespace zeropage::launch
