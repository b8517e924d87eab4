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

// A variable read under the wrong name would give a rank a wrong number, or make it a job of one rank.
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

// With a wrong address, the ranks of two hosts, or of torchrun's next attempt, would wait for each other.
TEST(Meeting, IsReadFromTheEnvironment) {
  const auto meeting_of = [](const Variables& variables, const World& world = {0, 0, 4, 2}) {
    return meeting_from_environment(environment_of(variables), world);
  };
  Variables variables{{"MASTER_ADDR", "first"}, {"MASTER_PORT", "29500"}};
  EXPECT_EQ(meeting_of(variables), (Meeting{"first", 29500, false, ""}));
  variables.insert({{"TORCHELASTIC_USE_AGENT_STORE", "True"}, {"TORCHELASTIC_RESTART_COUNT", "2"}});
  EXPECT_EQ(meeting_of(variables), (Meeting{"first", 29500, true, "2/"}));
  EXPECT_THROW(meeting_of({{"MASTER_ADDR", "first"}}), ConfigError);
  EXPECT_THROW(meeting_of({}), ConfigError) << "of several hosts nobody can guess the first";
  for (const char* port : {"0", "65536", "-1", "ssh", "", "29500 ", "\xd9\xa1"}) {
    EXPECT_THROW(meeting_of({{"MASTER_ADDR", "first"}, {"MASTER_PORT", port}}), ConfigError) << port;
  }
  for (const char* address : {"", " ", "first host", "http://first", "first\n"}) {
    EXPECT_THROW(meeting_of({{"MASTER_ADDR", address}, {"MASTER_PORT", "1"}}), ConfigError) << address;
  }
}

// Catches two jobs of mpirun on one host that listen on the same port, and ranks of one that do not agree on it.
TEST(Meeting, OfOneHostIsMadeFromTheJobsName) {
  const auto port_of = [](const char* job) {
    const Variables variables{{"PMIX_NAMESPACE", job}};
    return meeting_from_environment(environment_of(variables), {0, 0, 2, 2}).port;
  };
  EXPECT_EQ(port_of("7"), port_of("7"));
  EXPECT_NE(port_of("7"), port_of("8"));
}

// Catches a token in another form, which ranks would silently accept.
TEST(Meeting, TokenHasItsForm) {
  const auto token_of = [](const std::string& value) {
    const Variables variables{{"ZEROPAGE_JOB_TOKEN", value}};
    return token_from_environment(environment_of(variables));
  };
  EXPECT_EQ(token_of(std::string(32, 'f')), std::string(32, 'f'));
  EXPECT_EQ(token_of(""), "");
  for (const std::string& value :
       {std::string("x"), std::string(31, 'a'), std::string(33, 'a'), std::string(32, '/')}) {
    EXPECT_THROW(token_of(value), ConfigError) << value;
  }
}

// The shell of an allocation has some of Slurm's variables; a program started there is one rank and must not wait for
// others.
TEST(World, InAnAllocationsShellIsOne) { EXPECT_EQ(world_of({{"SLURM_PROCID", "0"}, {"SLURM_NTASKS", "8"}}), World{}); }

TEST(World, NamesWhatIsMissingOrWrong) {
  EXPECT_NE(error_of({{"RANK", "0"}, {"WORLD_SIZE", "2"}})
                .find("has RANK=0, WORLD_SIZE=2 but not LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR, MASTER_PORT"),
            std::string::npos);
  Variables wrong{{"RANK", "one"}, {"LOCAL_RANK", "0"}, {"WORLD_SIZE", "1"}, {"LOCAL_WORLD_SIZE", "1"}};
  EXPECT_NE(error_of(wrong).find("expected integers in RANK=one"), std::string::npos);
  for (const char* rank : {"\xd9\xa0", " 0", "+0", "0x0", "1e0", "99999999999"}) {
    wrong["RANK"] = rank;
    EXPECT_NE(error_of(wrong).find("expected integers in"), std::string::npos) << rank;
  }
  wrong["RANK"] = "1";
  EXPECT_NE(error_of(wrong).find("contradict each other (RANK=1"), std::string::npos);
}

// Two jobs, or two engines of one job, in the same segment would mix their data.
TEST(SegmentName, IsOneForAJobAndAnotherForOthers) {
  const auto name = [](const Variables& variables, int number) {
    return segment_name(environment_of(variables), number);
  };
  const std::string token(32, 'a');
  const Variables job{{"ZEROPAGE_JOB_TOKEN", token}, {"RANK", "0"}};
  const Variables same_job{{"ZEROPAGE_JOB_TOKEN", token}, {"RANK", "1"}};
  EXPECT_EQ(name(job, 0), name(same_job, 0));
  EXPECT_NE(name(job, 0), name(job, 1));
  EXPECT_NE(name(job, 0), name({{"ZEROPAGE_JOB_TOKEN", std::string(32, 'b')}}, 0));
  EXPECT_NE(name({{"MASTER_PORT", "1"}}, 0), name({{"MASTER_PORT", "2"}}, 0));
}

}  // namespace
}  // namespace zeropage::comm
