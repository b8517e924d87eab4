#include "zeropage/launch/allocation.h"

#include <gtest/gtest.h>

#include <chrono>
#include <map>

#include "zeropage/base/error.h"

namespace zeropage::launch {
namespace {

Environment environment(std::map<std::string, std::string> variables) {
  return [variables](const char* name) -> const char* {
    const auto found = variables.find(name);
    return found == variables.end() ? nullptr : found->second.c_str();
  };
}

TEST(Allocation, NodeLists) {
  using Names = std::vector<std::string>;
  EXPECT_EQ(expand_node_list("gpu[08-10,2],login,x[1-2].y"),
            Names({"gpu08", "gpu09", "gpu10", "gpu2", "login", "x1.y", "x2.y"}));
  for (const char* list : {"", "a[", "a[2-1]", "a[x]", "-a", "a[1-9999999]", "a,,b", "a[1]]"}) {
    EXPECT_THROW(expand_node_list(list), ConfigError) << list;
  }
}

TEST(Allocation, SlurmHostsAndSlots) {
  EXPECT_TRUE(slurm_hosts(environment({})).empty());
  const auto by_gpu = slurm_hosts(environment({{"SLURM_JOB_NODELIST", "n[1-2]"}, {"SLURM_GPUS_ON_NODE", "2"}}));
  EXPECT_EQ(by_gpu, std::vector<HostSlots>({{"n1", {0, 1}}, {"n2", {0, 1}}}));
  const auto by_task =
      slurm_hosts(environment({{"SLURM_JOB_NODELIST", "n[1-3]"}, {"SLURM_TASKS_PER_NODE", "2(x2),1"}}));
  EXPECT_EQ(by_task, std::vector<HostSlots>({{"n1", {0, 1}}, {"n2", {0, 1}}, {"n3", {0}}}));
}

// Catches a range that is refused only after tens of thousands of names were made (found by libFuzzer).
TEST(Allocation, HugeRangesAreRefusedAtOnce) {
  const auto begin = std::chrono::steady_clock::now();
  for (int i = 0; i < 200; ++i) EXPECT_THROW(expand_node_list("gpu[00-0337614]"), ConfigError);
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(1));
}

TEST(Allocation, Tasks) {
  const auto open_mpi = task_of(environment({{"OMPI_COMM_WORLD_RANK", "3"},
                                             {"OMPI_COMM_WORLD_SIZE", "4"},
                                             {"OMPI_COMM_WORLD_LOCAL_RANK", "1"},
                                             {"OMPI_COMM_WORLD_LOCAL_SIZE", "2"}}));
  ASSERT_TRUE(open_mpi);
  EXPECT_EQ(std::tuple(open_mpi->rank, open_mpi->size, open_mpi->local_rank, open_mpi->node, open_mpi->num_nodes),
            std::tuple(3, 4, 1, 1, 2));
  const auto slurm = task_of(environment({{"SLURM_STEP_NUM_TASKS", "3"},
                                          {"SLURM_PROCID", "2"},
                                          {"SLURM_LOCALID", "0"},
                                          {"SLURM_NODEID", "1"},
                                          {"SLURM_STEP_NUM_NODES", "2"},
                                          {"SLURM_STEP_TASKS_PER_NODE", "2,1"},
                                          {"SLURM_STEP_NODELIST", "n[7-8]"}}));
  ASSERT_TRUE(slurm);
  EXPECT_EQ(std::tuple(slurm->local_size, slurm->first_host), std::tuple(1, std::string("n7")));
  EXPECT_FALSE(task_of(environment({{"SLURM_PROCID", "0"}}))) << "a batch script is no task";
  EXPECT_FALSE(task_of(environment({{"PMI_RANK", "0"}, {"PMI_SIZE", "1"}})));
  EXPECT_THROW(task_of(environment({{"PMI_RANK", "0"}, {"PMI_SIZE", "2"}})), ConfigError) << "no local rank";
}

}  // namespace
}  // namespace zeropage::launch
