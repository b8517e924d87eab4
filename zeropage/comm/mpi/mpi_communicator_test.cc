// The communicator over MPI, on ranks that a real mpirun starts (their program is mpi_ranks_main.cc).
#include <gtest/gtest.h>

#include <array>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

namespace zeropage::comm {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

struct Job {
  int status = -1;
  std::string output;
  std::vector<std::string> outcomes;  ///< one per rank that reached its end, in any order
  Clock::duration took{};
};

Job run_job(int ranks, const std::string& scenario) {
  // More ranks than cores, also as root, also inside another job of MPI.
  const std::string command =
      "for name in $(env | sed -n 's/^\\(OMPI_[A-Z]*\\|PMIX\\)_[^=]*=.*/&/p' | cut -d= -f1); "
      "do unset $name; done; "
      "OMPI_MCA_rmaps_base_oversubscribe=1 OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 " MPIEXEC " -n " +
      std::to_string(ranks) + " " MPI_RANKS " " + scenario + " 2>&1";
  Job job;
  const auto begin = Clock::now();
  FILE* pipe = popen(command.c_str(), "r");
  if (pipe == nullptr) return job;
  std::array<char, 4096> line{};
  while (fgets(line.data(), line.size(), pipe) != nullptr) {
    const std::string text = line.data();
    job.output += text;
    if (text.starts_with("outcome: ")) job.outcomes.push_back(text.substr(9, text.size() - 10));
  }
  job.status = pclose(pipe);
  job.took = Clock::now() - begin;
  return job;
}

void expect_success(const Job& job, int ranks) {
  EXPECT_EQ(job.status, 0) << job.output;
  EXPECT_EQ(job.outcomes, std::vector<std::string>(static_cast<std::size_t>(ranks))) << job.output;
}

/// Expects that at least `ranks` ranks reached their end with an outcome that contains each of `pieces`, and that
/// mpirun fails soon.
void expect_failure(const Job& job, std::size_t ranks, const std::vector<std::string>& pieces) {
  EXPECT_NE(job.status, 0) << job.output;
  EXPECT_GE(job.outcomes.size(), ranks) << job.output;
  for (const std::string& outcome : job.outcomes) {
    for (const std::string& piece : pieces) EXPECT_NE(outcome.find(piece), outcome.npos) << piece << "\n" << outcome;
  }
  EXPECT_LT(job.took, milliseconds(10000));
}

class MpiConformance : public testing::TestWithParam<int> {};

// Catches wrong sums, orders and tags; lost pieces of long messages; two communicators that mix; a job that does not
// end by itself.
TEST_P(MpiConformance, Holds) { expect_success(run_job(GetParam(), "conforms"), GetParam()); }

INSTANTIATE_TEST_SUITE_P(Sizes, MpiConformance, testing::Values(1, 2, 4));

// Catches ranks of one host that communicate through MPI, or that cannot join twice.
TEST(Mpi, RanksOfOneHostShareMemory) { expect_success(run_job(3, "joins"), 3); }

// Catches a runtime that finalises an MPI that is not its own.
TEST(Mpi, TheProgramMayInitialiseMpi) { expect_success(run_job(2, "runtime_starts_twice"), 2); }

// Catches a hang when a rank neither dies nor continues, and a stopped rank that outlives the job.
TEST(Mpi, StoppedRankIsNamedAfterTheTimeout) {
  expect_failure(run_job(3, "last_is_stopped"), 2,
                 {"waited 1000 ms for all_reduce of 300000 fp32 ('sum'", "missing: rank 2."});
}

// Catches a job that continues without a rank.
TEST(Mpi, KilledRankEndsTheJob) {
  const Job job = run_job(3, "last_is_killed");
  EXPECT_NE(job.status, 0);
  EXPECT_NE(job.output.find("rank 2"), job.output.npos) << job.output;
  EXPECT_LT(job.took, milliseconds(10000));
}

// Catches waits that an abort does not reach, and reasons that get lost.
TEST(Mpi, AbortWakesEveryRank) {
  expect_failure(run_job(3, "last_aborts"), 3, {"PeerError: rank 2 aborted: out of coffee"});
}

// Catches ranks that wait out the timeout for one that has ended its part.
TEST(Mpi, RankThatLeavesIsNamed) {
  const Job job = run_job(2, "last_leaves");
  EXPECT_NE(job.status, 0);
  EXPECT_NE(job.output.find(
                "rank 1 has reached the end of its script, or closed its engine, while rank 0 waits for all_reduce"),
            job.output.npos)
      << job.output;
  EXPECT_LT(job.took, milliseconds(10000));
}

// Catches collectives that mix up data when ranks call different ones.
TEST(Mpi, DifferentCallsAreNamed) {
  expect_failure(run_job(2, "calls_differ"), 2,
                 {"PeerError: ", "do not agree on collective 0", "of 50 fp32 ('sum' 7)"});
}

// Catches wrong results without an error when nothing was compared before.
TEST(Mpi, DifferentSizesAreErrorsUnchecked) {
  expect_failure(run_job(2, "sizes_differ_unchecked"), 2, {"PeerError: ", "all_reduce of "});
}

// Catches a set-up that waits for ever.
TEST(Mpi, RankThatDoesNotComeIsATimeout) {
  const Job job = run_job(2, "last_does_not_come");
  EXPECT_NE(job.status, 0);
  EXPECT_NE(job.output.find("TimeoutError: rank 0 waited 1000 ms for all ranks to make"), job.output.npos)
      << job.output;
  EXPECT_LT(job.took, milliseconds(10000));
}

}  // namespace
}  // namespace zeropage::comm
