// Tests with a SIGKILL before every system call of a save, on real files.
#include <gtest/gtest.h>

#include <iostream>

#include "zeropage/checkpoint/test_sweep.h"
#include "zeropage/comm/testing/test_ranks.h"

namespace zeropage::checkpoint {
namespace {

// Catches a mixture of the old and the new checkpoint, an acknowledged save that is missing, and leftovers that stop
// the next save.
TEST(KillSweep, BeforeAnySystemCallTheOldOrTheNewStepLoads) {
  std::map<long, int> counts;
  int points = 0;
  for (const SweepCase& scenario : kSweepCases) {
    for (int at = 0, killed = 1; killed != 0; ++at) {
      const TestFolder folder(memory_folder());
      save_alone(system_files(), folder.path(), "old", 1);
      TracedProcess child([&] {
        auto communicators = comm::make_thread_communicators(1, kTestTimeout);
        save(system_files(), *communicators[0], request_of(scenario, folder.path(), 0, 1));
        acknowledge(folder.path(), 0);
      });
      if (!child.permitted()) GTEST_SKIP() << "ptrace is not permitted here";
      long number = -1;
      killed = child.run_to_call([&, left = at](long call) mutable { return number = call, left-- == 0; });
      child.kill();
      ASSERT_EQ(problem_after_crash(folder.path(), acknowledged(folder.path(), 0)), "")
          << scenario.tag << ", keep_last " << scenario.keep_last << ", killed before call " << at << " (" << number
          << ")";
      if (killed != 0) ++counts[number], ++points;
    }
  }
  std::cout << points << " kills of one rank of one: " << listing(counts) << "\n";
  EXPECT_GT(counts[SYS_pwrite64] + counts[SYS_fsync] + counts[SYS_openat], 30);
}

// Catches the same when another rank survives: it must find the failure, and must not report a checkpoint that does not
// exist.
TEST(KillSweep, EveryRankOfTwo) {
  std::map<long, int> counts;
  int points = 0;
  for (int killed_rank = 0; killed_rank < 2; ++killed_rank) {
    for (int at = 0, killed = 1; killed != 0; ++at) {
      const TestFolder folder(memory_folder());
      save_alone(system_files(), folder.path(), "old", 1);
      const std::string job = comm::unique_job_name();
      const auto rank_saves = [&](int rank) {
        const auto communicator = comm::join_shared_memory(job, rank, 2, kTestTimeout);
        communicator->barrier(comm::Tag{"all are here", 0});
        syscall(TracedProcess::kBegin, 0);
        save(system_files(), *communicator, request_of({"new", 1}, folder.path(), rank, 2));
        acknowledge(folder.path(), rank);
      };
      comm::RankProcess other([&] { rank_saves(1 - killed_rank); });
      TracedProcess child([&] { comm::outcome_of([&] { rank_saves(killed_rank); }); });
      if (!child.permitted()) GTEST_SKIP() << "ptrace is not permitted here";
      ASSERT_TRUE(child.run_to_call([](long call) { return call == TracedProcess::kBegin; }));
      long number = -1;
      killed = child.run_to_call(
          [&, left = at](long call) mutable { return concerns_files(call) && (number = call, left-- == 0); });
      child.kill();
      const std::string outcome = other.outcome();
      const bool saved = acknowledged(folder.path(), 0) | acknowledged(folder.path(), 1);
      ASSERT_TRUE(outcome.empty() || comm::contains(outcome, "PeerError")) << outcome;
      ASSERT_EQ(problem_after_crash(folder.path(), saved), "")
          << "rank " << killed_rank << ", killed before call " << at << " (" << number << ")";
      if (killed != 0) ++counts[number], ++points;
    }
  }
  std::cout << points << " kills of a rank of two: " << listing(counts) << "\n";
  EXPECT_GT(points, 50);
}

}  // namespace
}  // namespace zeropage::checkpoint
