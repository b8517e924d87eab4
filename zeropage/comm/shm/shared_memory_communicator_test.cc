// Ranks as processes: the conformance suite, ranks that die, stop or never join, and leftovers in /dev/shm.
#include "zeropage/comm/shm/shared_memory_communicator.h"

#include <gtest/gtest.h>
#include <sys/stat.h>

#include <filesystem>

#include "zeropage/comm/shm/region_control.h"
#include "zeropage/comm/shm/shared_file.h"
#include "zeropage/comm/testing/communicator_conformance.h"
#include "zeropage/comm/testing/test_ranks.h"

namespace zeropage::comm {
namespace {

using std::chrono::milliseconds;
using Clock = std::chrono::steady_clock;

constexpr milliseconds kShort{1000};

/// Names in /dev/shm that this test process made.
std::vector<std::string> leftovers() {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator("/dev/shm")) {
    const std::string name = entry.path().filename();
    if (name.find("zp-test-" + std::to_string(getpid())) != name.npos) names.push_back(name);
  }
  return names;
}

class ProcessConformance : public testing::TestWithParam<int> {};

// Catches differences between processes and threads: mappings, offsets, wake-ups across processes.
TEST_P(ProcessConformance, Holds) {
  for (const std::string& outcome : run_processes(GetParam(), kRankTimeout, run_conformance)) EXPECT_EQ(outcome, "");
  EXPECT_EQ(leftovers(), std::vector<std::string>());
}

INSTANTIATE_TEST_SUITE_P(Sizes, ProcessConformance, testing::Values(1, 2, 4));

void reduce_for_ever(Communicator& c) {
  std::vector<float> data(300000);
  for (std::int64_t i = 0;; ++i) c.all_reduce(data.data(), 300000, DType::kFloat32, {"sum", i}, {})->wait();
}

// Catches ranks that hang, or wait out the timeout, when one is killed in the middle of a collective.
TEST(SharedMemory, KilledRankIsNamedAtOnce) {
  const auto ranks = start_processes(unique_job_name(), 3, kRankTimeout, reduce_for_ever);
  std::this_thread::sleep_for(milliseconds(300));
  const auto begin = Clock::now();
  ranks[1]->signal(SIGKILL);
  for (const int r : {0, 2}) {
    const std::string outcome = ranks[static_cast<std::size_t>(r)]->outcome();
    EXPECT_TRUE(outcome.starts_with("PeerError")) << outcome;
    EXPECT_TRUE(contains(outcome, "rank 1 is lost (its process")) << outcome;
    EXPECT_TRUE(contains(outcome, "all_reduce of 300000 fp32 ('sum'")) << outcome;
  }
  EXPECT_LT(Clock::now() - begin, milliseconds(5000));
  EXPECT_EQ(leftovers(), std::vector<std::string>());
}

// Catches a hang when a rank neither dies nor continues.
TEST(SharedMemory, StoppedRankIsNamedAfterTheTimeout) {
  const auto ranks = start_processes(unique_job_name(), 3, kShort, reduce_for_ever);
  std::this_thread::sleep_for(milliseconds(300));
  ranks[1]->signal(SIGSTOP);
  for (const int r : {0, 2}) {
    const std::string outcome = ranks[static_cast<std::size_t>(r)]->outcome();
    EXPECT_TRUE(contains(outcome, "Error: ")) << outcome;
    EXPECT_TRUE(contains(outcome, "missing: rank 1 (pid")) << outcome;
    EXPECT_TRUE(contains(outcome, "stopped by a signal")) << outcome;
  }
  ranks[1]->signal(SIGCONT);
  const std::string outcome = ranks[1]->outcome();
  EXPECT_TRUE(outcome.starts_with("PeerError: rank ")) << outcome;  // it is informed that the others gave up
}

// Catches messages that blame the wrong rank when some never start.
TEST(SharedMemory, RanksThatNeverComeAreNamed) {
  const std::string name = unique_job_name();
  const auto body = [](Communicator&) {};
  RankProcess zero([&] { body(*join_shared_memory(name, 0, 4, kShort)); });
  RankProcess two([&] { body(*join_shared_memory(name, 2, 4, kShort)); });
  // Whichever of the two gives up first tells the other.
  const std::string finding = "at " + name + " for rank(s) 1, 3; they did not start";
  for (RankProcess* rank : {&zero, &two}) {
    const std::string outcome = rank->outcome();
    EXPECT_TRUE(contains(outcome, finding)) << outcome;
  }
  EXPECT_EQ(leftovers(), std::vector<std::string>());
  const std::string alone = outcome_of([&] { join_shared_memory(name, 1, 2, kShort); });
  EXPECT_TRUE(contains(alone, "for rank(s) 0 or for rank 0 to offer its memory")) << alone;
}

// Catches leftovers of a job that was killed while it started, and a second start that fails because of them.
TEST(SharedMemory, NothingIsLeftOfAJobThatWasKilledWhileItStarted) {
  const std::string name = unique_job_name();
  const auto join = [&](int rank) { join_shared_memory(name, rank, 2, kRankTimeout)->barrier({"fresh", 0}); };
  for (int i = 0; i < 20; ++i) {
    std::vector<std::unique_ptr<RankProcess>> dead;
    for (const int rank : {0, 1}) {
      if (rank == i % 3) continue;  // one of the two joins, or both
      dead.push_back(std::make_unique<RankProcess>([&, rank] { join(rank); }));
    }
    std::this_thread::sleep_for(std::chrono::microseconds(300 * i));
    for (const auto& rank : dead) rank->signal(SIGKILL);
    for (const auto& rank : dead) rank->outcome();
    EXPECT_EQ(leftovers(), std::vector<std::string>());
    RankProcess one([&] { join(1); });
    RankProcess zero([&] { join(0); });
    EXPECT_EQ(zero.outcome(), "");
    EXPECT_EQ(one.outcome(), "");
  }
}

// Catches a second job that joins a starting one of the same name.
TEST(SharedMemory, NamesInUseAreRefused) {
  const std::string name = unique_job_name();
  RankProcess waiting([&] { join_shared_memory(name, 0, 2, kRankTimeout)->barrier({"both", 0}); });
  std::this_thread::sleep_for(milliseconds(100));
  const std::string second = outcome_of([&] { join_shared_memory(name, 0, 2, kRankTimeout); });
  EXPECT_TRUE(contains(second, "PeerError: cannot offer shared memory under the name " + name)) << second;
  EXPECT_TRUE(contains(second, "another job that is starting")) << second;
  const std::string other_size = outcome_of([&] { join_shared_memory(name, 1, 3, kRankTimeout); });
  EXPECT_TRUE(contains(other_size, "rank 1 expects 3 ranks")) << other_size;
  RankProcess one([&] { join_shared_memory(name, 1, 2, kRankTimeout)->barrier({"both", 0}); });
  EXPECT_EQ(waiting.outcome(), "");
  EXPECT_EQ(one.outcome(), "");
}

// Catches jobs that share memory although their names differ.
TEST(SharedMemory, TwoJobsDoNotMeet) {
  const auto body = [](float value) {
    return [value](Communicator& c) {
      for (int i = 0; i < 100; ++i) {
        std::vector<float> data(5000, value);
        c.all_reduce(data.data(), 5000, DType::kFloat32, {"sum", i}, {})->wait();
        if (data[4999] != 2 * value) throw Error("the other job's numbers");
      }
    };
  };
  const auto first = start_processes(unique_job_name(), 2, kRankTimeout, body(1));
  const auto second = start_processes(unique_job_name(), 2, kRankTimeout, body(10));
  for (const auto* job : {&first, &second}) {
    for (const auto& rank : *job) EXPECT_EQ(rank->outcome(), "");
  }
}

// Catches memory that is passed to another user's process, and memory of another user that is trusted.
TEST(SharedMemory, BelongsToOneUser) {
  if (geteuid() != 0) GTEST_SKIP() << "only root can become another user";
  const auto as_nobody = [](const std::string& name, int rank) {
    return std::make_unique<RankProcess>([=] {
      if (setuid(65534) != 0) throw IoError("setuid");
      join_shared_memory(name, rank, 2, kShort);
    });
  };
  const std::string theirs = unique_job_name();
  const auto squatter = as_nobody(theirs, 0);
  std::this_thread::sleep_for(milliseconds(100));
  for (const int rank : {0, 1}) {
    const std::string outcome = outcome_of([&] { join_shared_memory(theirs, rank, 2, kShort); });
    EXPECT_TRUE(contains(outcome, "of user 65534")) << outcome;
  }
  const std::string ours = unique_job_name();
  RankProcess waiting([&] { join_shared_memory(ours, 0, 2, kShort); });
  std::this_thread::sleep_for(milliseconds(100));
  const std::string stranger = as_nobody(ours, 1)->outcome();
  EXPECT_TRUE(contains(stranger, "of user 0, this process runs as user 65534")) << stranger;
  EXPECT_TRUE(contains(waiting.outcome(), "for rank(s) 1")) << "the stranger was not taken for rank 1";
}

// Catches a second process that replaces a rank that has joined already.
TEST(SharedMemory, EveryRankJoinsOnce) {
  const std::string name = unique_job_name();
  RankProcess zero([&] { join_shared_memory(name, 0, 3, kShort); });
  RankProcess one([&] { join_shared_memory(name, 1, 3, kShort); });
  std::this_thread::sleep_for(milliseconds(200));
  const std::string outcome = outcome_of([&] { join_shared_memory(name, 1, 3, kRankTimeout); });
  EXPECT_TRUE(contains(outcome, "PeerError: rank 1 has joined " + name + " already")) << outcome;
  zero.outcome();
}

// Catches names that leave /dev/shm or collide with its other users.
TEST(SharedMemory, RefusesBadNamesAndRanks) {
  for (const char* name : {"", "../x", "a/b", ".hidden", "white space"}) {
    EXPECT_THROW(join_shared_memory(name, 0, 1, kShort), ConfigError) << name;
  }
  EXPECT_THROW(join_shared_memory("zp-x", 2, 2, kShort), ConfigError);
  EXPECT_THROW(join_shared_memory("zp-x", -1, 2, kShort), ConfigError);
  EXPECT_THROW(join_shared_memory("zp-x", 0, 0, kShort), ConfigError);
}

// Catches a full /dev/shm that kills with SIGBUS instead of an error with the needed size.
TEST(SharedMemory, TooLittleSpaceIsAnErrorWithSizes) {
  struct stat status {};
  ASSERT_EQ(stat("/dev/shm", &status), 0);
  const std::string outcome = outcome_of([] { create_shared_file(Backing::kTemporaryFile, std::int64_t{1} << 50); });
  EXPECT_TRUE(contains(outcome, "IoError: cannot reserve 1125899906842624 bytes")) << outcome;
  EXPECT_TRUE(contains(outcome, "--shm-size")) << outcome;
  EXPECT_EQ(leftovers(), std::vector<std::string>());
}

// Catches a file that has a name which outlives its use, or that another user's process could open.
TEST(SharedMemory, FilesInMemory) {
  for (const Backing backing : {Backing::kAnonymousFile, Backing::kTemporaryFile}) {
    const SharedFile file = create_shared_file(backing, 10000);
    struct stat status {};
    ASSERT_EQ(fstat(file.fd.get(), &status), 0);
    EXPECT_EQ(status.st_mode & 0777, 0600u);
    EXPECT_EQ(status.st_size, 10000);
    const SharedFile again = open_shared_file(file.path, 10000);
    EXPECT_TRUE(again.fd);
    EXPECT_THROW(open_shared_file(file.path, 10001), IoError);
  }
  EXPECT_EQ(leftovers(), std::vector<std::string>());
}

}  // namespace
}  // namespace zeropage::comm
