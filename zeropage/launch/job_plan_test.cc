#include "zeropage/launch/job_plan.h"

#include <gtest/gtest.h>

#include <map>

#include "zeropage/base/error.h"

namespace zeropage::launch {
namespace {

using Words = std::vector<std::string>;

Host cpu_host() {
  Host host;
  host.cores = {0, 1, 2, 3, 4, 5, 6, 7};
  host.units = {0, 1, 2, 3};
  host.python = "/venv/bin/python";
  host.port = 29500;
  host.token = "token";
  return host;
}

LaunchOptions options_for(int num_ranks) {
  LaunchOptions options;
  options.num_ranks = num_ranks;
  options.script = "train.py";
  options.script_args = {"--lr", "1 e-3"};
  return options;
}

JobPlan plan_alone(const LaunchOptions& options, const Host& host) {
  return plan_job(options, host, place_alone(options, host));
}

std::map<std::string, std::string> env_of(const RankPlan& rank) { return {rank.env.begin(), rank.env.end()}; }

TEST(Plan, ArgumentsAreTheReferences) {
  LaunchOptions options = options_for(2);
  EXPECT_EQ(plan_alone(options, cpu_host()).ranks[1].argv,
            Words({"/venv/bin/python", "-u", "train.py", "--local_rank=1", "--lr", "1 e-3"}));
  options.module = true;
  EXPECT_EQ(plan_alone(options, cpu_host()).ranks[0].argv,
            Words({"/venv/bin/python", "-u", "-m", "train.py", "--local_rank=0", "--lr", "1 e-3"}));
  options.module = false;
  options.no_python = options.no_local_rank = true;
  EXPECT_EQ(plan_alone(options, cpu_host()).ranks[0].argv, Words({"train.py", "--lr", "1 e-3"}));
}

TEST(Plan, Environment) {
  const JobPlan plan = plan_alone(options_for(2), cpu_host());
  ASSERT_EQ(plan.ranks.size(), 2u);
  const std::map<std::string, std::string> expected = {{"MASTER_ADDR", "127.0.0.1"}, {"MASTER_PORT", "29500"},
                                                       {"WORLD_SIZE", "2"},          {"RANK", "1"},
                                                       {"LOCAL_RANK", "1"},          {"LOCAL_SIZE", "2"},
                                                       {"CROSS_RANK", "0"},          {"CROSS_SIZE", "1"},
                                                       {"LOCAL_WORLD_SIZE", "2"},    {"ZEROPAGE_JOB_TOKEN", "token"},
                                                       {"OMP_NUM_THREADS", "4"}};
  EXPECT_EQ(env_of(plan.ranks[1]), expected);
}

// Catches a measuring job that runs a torch.py of the current folder, and scripts of users that lose their own modules.
TEST(Plan, OnlyTheUsersScriptFindsModulesInTheCurrentFolder) {
  LaunchOptions options = options_for(1);
  options.module = options.no_local_rank = true;
  options.script = "m";
  options.script_args.clear();
  EXPECT_EQ(rank_argv(options, "python", 0), Words({"python", "-u", "-m", "m"}));
  options.safe_path = true;
  EXPECT_EQ(rank_argv(options, "python", 0), Words({"python", "-u", "-P", "-m", "m"}));
}

TEST(Plan, ThreadsAreSharedUnlessTheUserDecided) {
  Host host = cpu_host();
  EXPECT_EQ(env_of(plan_alone(options_for(16), host).ranks[0])["OMP_NUM_THREADS"], "1");
  EXPECT_FALSE(env_of(plan_alone(options_for(1), host).ranks[0]).count("OMP_NUM_THREADS"))
      << "one rank: torch chooses its threads";
  host.omp_threads_set = true;
  EXPECT_FALSE(env_of(plan_alone(options_for(2), host).ranks[0]).count("OMP_NUM_THREADS"));
}

TEST(Plan, Binding) {
  LaunchOptions options = options_for(2);
  options.bind_cores = true;
  JobPlan plan = plan_alone(options, cpu_host());
  EXPECT_EQ(plan.ranks[1].cores, std::vector<int>({2, 3})) << "of units, not of their second threads";
  EXPECT_EQ(env_of(plan.ranks[1])["OMP_NUM_THREADS"], "2");
  options.core_list = "4-7,1";
  plan = plan_alone(options, cpu_host());
  EXPECT_EQ(plan.ranks[0].cores, std::vector<int>({4, 5}));
  EXPECT_EQ(plan.ranks[1].cores, std::vector<int>({6, 7}));
  options.core_list = "0,8";
  EXPECT_THROW(plan_alone(options, cpu_host()), ConfigError) << "core 8 is not ours";
  options = options_for(5);
  options.bind_cores = true;
  EXPECT_THROW(plan_alone(options, cpu_host()), ConfigError) << "5 ranks, 4 units";
}

TEST(Plan, Gpus) {
  Host host = cpu_host();
  host.gpus = {"2", "3", "5"};
  LaunchOptions options = options_for(2);
  JobPlan plan = plan_alone(options, host);
  EXPECT_EQ(env_of(plan.ranks[1])["CUDA_VISIBLE_DEVICES"], "2,3");
  EXPECT_TRUE(plan.notices.empty());
  options.num_ranks.reset();
  EXPECT_EQ(plan_alone(options, host).ranks.size(), 3u);
  options.num_ranks = 4;
  EXPECT_THROW(plan_alone(options, host), ConfigError);
}

// Catches missing notices about hidden GPUs and taken ports.
TEST(Plan, NoticesSayWhatWasDecided) {
  Host host = cpu_host();
  LaunchOptions options = options_for(2);
  EXPECT_EQ(plan_alone(options, host).notices, Words({"no GPU here: starting 2 CPU ranks"}));
  options.num_ranks.reset();
  EXPECT_EQ(plan_alone(options, host).notices, Words({"no GPU here: starting 1 CPU rank; --num_gpus=2 starts two"}));
  EXPECT_EQ(plan_alone(options, host).ranks.size(), 1u);
  const HostPart one_of_mpiruns{"", {0}, 1, 1, 2, 2, 0, 1, "127.0.0.1", 29500};
  EXPECT_EQ(plan_job(options, host, one_of_mpiruns).notices, Words({"no GPU here: starting 1 CPU rank"}));
  host.gpus = {"0"};
  host.port = 40000;
  EXPECT_EQ(plan_alone(options, host).notices, Words({"port 29500 is taken: using 40000"}));
}

// Catches wrong numbers of ranks: such a rank would train on the wrong data, or wait forever.
TEST(Plan, APlaceAmongOthers) {
  Host host = cpu_host();
  host.gpus = {"a", "b", "c"};
  const HostPart place{"n2", {0, 2}, 3, 0, 2, 5, 1, 2, "10.0.0.1", 29500};
  JobPlan plan = plan_job(options_for(2), host, place);
  ASSERT_EQ(plan.ranks.size(), 2u);
  EXPECT_EQ(plan.ranks[1].rank, 4);
  auto env = env_of(plan.ranks[1]);
  EXPECT_EQ(env["RANK"] + env["LOCAL_RANK"] + env["WORLD_SIZE"] + env["LOCAL_WORLD_SIZE"], "4152");
  EXPECT_EQ(env["CROSS_RANK"] + env["CROSS_SIZE"] + env["MASTER_ADDR"], "1210.0.0.1");
  EXPECT_EQ(env["CUDA_VISIBLE_DEVICES"], "a,c");
  host.gpus = {"a", "b"};
  EXPECT_THROW(plan_job(options_for(2), host, place), ConfigError) << "no such GPU";
}

}  // namespace
}  // namespace zeropage::launch
