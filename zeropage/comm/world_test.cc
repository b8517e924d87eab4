#include "zeropage/comm/world.h"

#include <gtest/gtest.h>

#include <map>

#include "zeropage/base/error.h"

namespace zeropage::comm {
namespace {

using Variables = std::map<std::string, std::string>;

Environment environment_of(const Variables& variables) {
  return [&variables](const char* name) {
    const auto found = variables.find(name);
    return found == variables.end() ? nullptr : found->second.c_str();
  };
}

World world_of(const Variables& variables) { return world_from_environment(environment_of(variables)); }

/// The message of the ConfigError that these variables cause.
std::string error_of(const Variables& variables) {
  try {
    world_of(variables);
  } catch (const ConfigError& error) {
    return error.what();
  }
  return "no error";
}

// A variable read under the wrong name would make a rank believe it is another, or alone.
TEST(World, IsReadFromEveryLauncher) {
  EXPECT_EQ(world_of({}), World{});
  const Variables torch{{"RANK", "3"},       {"LOCAL_RANK", "1"},          {"WORLD_SIZE", "4"},
                        {"LOCAL_SIZE", "2"}, {"MASTER_ADDR", "127.0.0.1"}, {"MASTER_PORT", "1"}};
  EXPECT_EQ(world_of(torch), (World{3, 1, 4, 2}));
  EXPECT_EQ(world_of({{"OMPI_COMM_WORLD_RANK", "1"},
                      {"OMPI_COMM_WORLD_LOCAL_RANK", "1"},
                      {"OMPI_COMM_WORLD_SIZE", "2"},
                      {"OMPI_COMM_WORLD_LOCAL_SIZE", "2"}}),
            (World{1, 1, 2, 2}));
  EXPECT_EQ(world_of({{"PMI_RANK", "2"}, {"MPI_LOCALRANKID", "0"}, {"PMI_SIZE", "4"}, {"MPI_LOCALNRANKS", "2"}}),
            (World{2, 0, 4, 2}));
  const Variables slurm{{"SLURM_PROCID", "8"},
                        {"SLURM_LOCALID", "0"},
                        {"SLURM_NODEID", "2"},
                        {"SLURM_STEP_NUM_TASKS", "11"},
                        {"SLURM_STEP_TASKS_PER_NODE", "4(x2),3"}};
  EXPECT_EQ(world_of(slurm), (World{8, 0, 11, 3}));
}

// A meeting place read wrongly leaves the ranks of two hosts, or of torchrun's next attempt, waiting for each other.
TEST(Meeting, IsReadFromTheEnvironment) {
  const auto meeting_of = [](const Variables& variables) {
    return meeting_from_environment(environment_of(variables));
  };
  EXPECT_EQ(meeting_of({}), std::nullopt);
  Variables variables{{"MASTER_ADDR", "first"}, {"MASTER_PORT", "29500"}};
  EXPECT_EQ(meeting_of(variables), (Meeting{"first", 29500, false, ""}));
  variables.insert({{"TORCHELASTIC_USE_AGENT_STORE", "True"}, {"TORCHELASTIC_RESTART_COUNT", "2"}});
  EXPECT_EQ(meeting_of(variables), (Meeting{"first", 29500, true, "2/"}));
  EXPECT_THROW(meeting_of({{"MASTER_ADDR", "first"}}), ConfigError);
  for (const char* port : {"0", "65536", "-1", "ssh", ""}) {
    EXPECT_THROW(meeting_of({{"MASTER_ADDR", "first"}, {"MASTER_PORT", port}}), ConfigError) << port;
  }
}

// The shell of an allocation has some of Slurm's variables; a program started there is one rank and must not wait for others.
TEST(World, InAnAllocationsShellIsOne) { EXPECT_EQ(world_of({{"SLURM_PROCID", "0"}, {"SLURM_NTASKS", "8"}}), World{}); }

TEST(World, NamesWhatIsMissingOrWrong) {
  EXPECT_NE(error_of({{"RANK", "0"}, {"WORLD_SIZE", "2"}})
                .find("has RANK=0, WORLD_SIZE=2 but not LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR, MASTER_PORT"),
            std::string::npos);
  Variables wrong{{"RANK", "one"}, {"LOCAL_RANK", "0"}, {"WORLD_SIZE", "1"}, {"LOCAL_WORLD_SIZE", "1"}};
  EXPECT_NE(error_of(wrong).find("expected integers in RANK=one"), std::string::npos);
  wrong["RANK"] = "1";
  EXPECT_NE(error_of(wrong).find("contradict each other (RANK=1"), std::string::npos);
}

// Two jobs, or two engines of one, that met in one segment would mix their data.
TEST(SegmentName, IsOneForAJobAndAnotherForOthers) {
  const auto name = [](const Variables& variables, int number) {
    return segment_name(environment_of(variables), number);
  };
  const Variables job{{"ZEROPAGE_JOB_TOKEN", "a"}, {"RANK", "0"}};
  const Variables same_job{{"ZEROPAGE_JOB_TOKEN", "a"}, {"RANK", "1"}};
  EXPECT_EQ(name(job, 0), name(same_job, 0));
  EXPECT_NE(name(job, 0), name(job, 1));
  EXPECT_NE(name(job, 0), name({{"ZEROPAGE_JOB_TOKEN", "b"}}, 0));
  EXPECT_NE(name({{"MASTER_PORT", "1"}}, 0), name({{"MASTER_PORT", "2"}}, 0));
}

}  // namespace
}  // namespace zeropage::comm
