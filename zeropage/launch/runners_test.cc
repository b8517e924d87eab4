#include "zeropage/launch/runners.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "zeropage/base/error.h"
#include "zeropage/launch/quote.h"

namespace zeropage::launch {
namespace {

LaunchOptions some_options() {
  LaunchOptions options;
  options.script = "train.py";
  options.script_args = {"a b", "50%"};
  return options;
}

RunnerContext context() {
  return {{{"n1", {0, 1}}, {"n2", {0, 1}}},
          "/venv/bin/zeropage",
          "/my work",
          {{"NCCL_DEBUG", "IN FO"}, {"KEY", "secret"}},
          false,
          "token"};
}

std::string line_of(const std::string& launcher, const RunnerContext& around = context()) {
  return shell_join(runner_command(some_options(), launcher, around).argv);
}

TEST(Runners, Ssh) {
  LaunchOptions options = some_options();
  options.ssh_port = 2222;
  options.launcher_args = "-o 'User=a b'";
  EXPECT_EQ(shell_join(ssh_argv(options, "[fe80::1]", "/a b/zeropage")),
            "ssh -T -o 'BatchMode=yes' -o 'ConnectTimeout=10' -p 2222 -o 'User=a b' -- fe80::1 'exec '\\''/a "
            "b/zeropage'\\'' agent'");
  options.venv_script = "/v/activate";
  EXPECT_EQ(ssh_argv(options, "h", "x").back(), ". /v/activate && exec zeropage agent");
}

TEST(Runners, MpiAndSlurm) {
  EXPECT_EQ(line_of("openmpi"),
            "mpirun -n 4 --host n1:2,n2:2 -x NCCL_DEBUG -x KEY -x MASTER_ADDR -x MASTER_PORT -x ZEROPAGE_JOB_TOKEN "
            "/venv/bin/zeropage train.py 'a b' '50%'");
  const std::string names = "NCCL_DEBUG,KEY,MASTER_ADDR,MASTER_PORT,ZEROPAGE_JOB_TOKEN";
  EXPECT_EQ(line_of("mpich"),
            "mpiexec -n 4 -hosts n1:2,n2:2 -genvlist " + names + " /venv/bin/zeropage train.py 'a b' '50%'");
  EXPECT_EQ(line_of("impi"),
            "mpirun -n 4 -ppn 2 -hosts n1,n2 -genvlist " + names + " /venv/bin/zeropage train.py 'a b' '50%'");
  EXPECT_EQ(
      line_of("slurm"),
      "srun '--nodes=2' '--ntasks=4' '--ntasks-per-node=2' '--nodelist=n1,n2' '--kill-on-bad-exit=1' '--export=ALL' "
      "/venv/bin/zeropage train.py 'a b' '50%'");
}

TEST(Runners, Pdsh) {
  RunnerContext around = context();
  around.variables = {{"NCCL_DEBUG", "IN FO"}};
  const RunnerCommand command = runner_command(some_options(), "pdsh", around);
  EXPECT_EQ(command.argv.back(),
            "cd '/my work' && export NCCL_DEBUG='IN FO' && exec /venv/bin/zeropage --node_rank=%n --no_ssh "
            "'--world_info=n1:0,1@n2:0,1' --master_addr n1 --master_port 29500 train.py 'a b' '50%%'");
  EXPECT_EQ(command.env, Variables({{"PDSH_RCMD_TYPE", "ssh"}}));
  around.has_secrets = true;
  EXPECT_THROW(runner_command(some_options(), "pdsh", around), ConfigError);
}

// Catches secrets in argument lists, which every user of a host can read.
TEST(Runners, ValuesAreNotInArgumentLists) {
  for (const char* launcher : {"openmpi", "mpich", "impi", "slurm"}) {
    const RunnerCommand command = runner_command(some_options(), launcher, context());
    EXPECT_EQ(shell_join(command.argv).find("secret"), std::string::npos) << launcher;
    EXPECT_EQ(std::count(command.env.begin(), command.env.end(), std::pair<std::string, std::string>("KEY", "secret")),
              1);
  }
}

TEST(Runners, WhatTheyCannotDoIsAnError) {
  RunnerContext around = context();
  around.hosts[1].slots = {1};
  EXPECT_THROW(line_of("openmpi", around), ConfigError) << "a chosen slot";
  around.hosts[1].slots = {0};
  EXPECT_THROW(line_of("slurm", around), ConfigError) << "unequal slots";
  EXPECT_NE(line_of("openmpi", around).find("-n 3 --host n1:2,n2:1"), std::string::npos);
}

}  // namespace
}  // namespace zeropage::launch
