#include "zeropage/cli/ckpt_command.h"

#include <gtest/gtest.h>

#include <CLI/CLI.hpp>
#include <fstream>

#include "zeropage/base/exit_code.h"
#include "zeropage/checkpoint/test_checkpoint.h"

namespace zeropage::cli {
namespace {

CkptOutcome run(const std::string& line) {
  CLI::App app;
  CkptCommand command;
  add_ckpt_command(app, command);
  app.parse("ckpt " + line);
  return run_ckpt_command(command);
}

bool contains(const std::string& text, const std::string& piece) { return text.find(piece) != std::string::npos; }

// Catches options that have no effect, a damaged checkpoint that is accepted, and wrong exit codes.
TEST(CkptCommand, ListsVerifiesComparesAndExports) {
  const checkpoint::TestFolder folder;
  const std::string at = folder.path();
  checkpoint::save_alone(checkpoint::system_files(), at, "one", 1);
  checkpoint::save_alone(checkpoint::system_files(), at, "two", 2);
  EXPECT_TRUE(contains(run("ls " + at).text, "two         2      1      0     8731 B  newest")) << run("ls " + at).text;
  EXPECT_TRUE(contains(run("ls --json " + at).text, "\"newest\": true"));
  EXPECT_EQ(run("verify " + at).code, 0);
  EXPECT_EQ(run("diff " + at + " " + at + "/two").code, 0);
  const auto diff = run("diff " + at + "/one " + at + "/two");
  EXPECT_EQ(diff.code, 1);
  EXPECT_TRUE(contains(diff.text, "value/weight: 2100 of 2100 elements differ, by up to 1")) << diff.text;
  EXPECT_TRUE(contains(run("export --dtype bf16 -t one " + at + " " + at + "/out").text, "out/model.safetensors"));
  EXPECT_THROW(run("export --dtype int8 " + at + " " + at + "/other"), CLI::ParseError);
  EXPECT_THROW(run("export " + at + "/out " + at + "/other"), ConfigError);
  {
    std::fstream shard(at + "/two/shard-00000-of-00001.safetensors", std::ios::in | std::ios::out);
    shard.seekp(5000);
    shard.put('\xff');
  }
  const auto damaged = run("verify " + at);
  EXPECT_EQ(damaged.code, kCheckpointExitCode);
  EXPECT_TRUE(contains(damaged.text, "two/shard-00000-of-00001.safetensors is damaged between offset 4096 and 8192"));
  EXPECT_TRUE(contains(damaged.text, "one: intact"));
}

}  // namespace
}  // namespace zeropage::cli
