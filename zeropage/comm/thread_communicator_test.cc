// Ranks as threads: the conformance suite, and every way in which ranks can fail to start the same collective.
#include "zeropage/comm/thread_communicator.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <numeric>

#include "zeropage/base/blocking.h"
#include "zeropage/comm/testing/communicator_conformance.h"
#include "zeropage/comm/testing/test_ranks.h"

namespace zeropage::comm {
namespace {

using std::chrono::milliseconds;
using Clock = std::chrono::steady_clock;

constexpr milliseconds kShort{500};

class ThreadConformance : public testing::TestWithParam<int> {};

// Catches wrong sums, sizes, offsets and routes, and buffers that are reused too early.
TEST_P(ThreadConformance, Holds) {
  for (const std::string& outcome : run_threads(GetParam(), kRankTimeout, run_conformance)) EXPECT_EQ(outcome, "");
}

INSTANTIATE_TEST_SUITE_P(Sizes, ThreadConformance, testing::Values(1, 2, 3, 4, 7));

// Catches a rank that believes a peer's different call: wrong sums without an error.
TEST(ThreadCommunicator, DifferentCallsAreNamedOnEveryRank) {
  const std::vector<std::pair<RankBody, std::string>> calls = {
      {[](Communicator& c) {
         c.barrier({"step", 1});
       },
       "barrier ('step' 1)"},
      {[](Communicator& c) {
         c.barrier({"step", 2});
       },
       "barrier ('step' 2)"},
      {[](Communicator& c) {
         c.barrier({"stop", 1});
       },
       "barrier ('stop' 1)"},
      {[](Communicator& c) {
         float x[8] = {};
         c.all_reduce(x, 8, DType::kFloat32, {"sum", 1}, {})->wait();
       },
       "all_reduce of 8 fp32 ('sum' 1)"},
      {[](Communicator& c) {
         float x[8] = {};
         c.all_reduce(x, 7, DType::kFloat32, {"sum", 1}, {})->wait();
       },
       "all_reduce of 7 fp32 ('sum' 1)"},
      {[](Communicator& c) {
         float x[8] = {};
         c.all_reduce(x, 8, DType::kBFloat16, {"sum", 1}, {})->wait();
       },
       "all_reduce of 8 bf16 ('sum' 1)"},
      {[](Communicator& c) {
         float x[8] = {};
         c.broadcast(x, 8, 0, {"sum", 1})->wait();
       },
       "broadcast of 8 bytes from rank 0 ('sum' 1)"},
      {[](Communicator& c) {
         float x[8] = {};
         c.broadcast(x, 8, 1, {"sum", 1})->wait();
       },
       "broadcast of 8 bytes from rank 1 ('sum' 1)"},
  };
  for (std::size_t a = 0; a < calls.size(); ++a) {
    for (std::size_t b = 0; b < calls.size(); ++b) {
      if (a == b) continue;
      const auto outcomes =
          run_threads(3, kRankTimeout, [&](Communicator& c) { calls[c.rank() == 1 ? b : a].first(c); });
      for (const std::string& outcome : outcomes) {
        EXPECT_TRUE(outcome.starts_with("PeerError")) << outcome;
        EXPECT_TRUE(contains(outcome, "rank 1 calls " + calls[b].second)) << outcome;
        EXPECT_TRUE(contains(outcome, "calls " + calls[a].second)) << outcome;
      }
    }
  }
}

// Catches a hang, and a message that does not say who is late and what it did last.
TEST(ThreadCommunicator, LateRankIsNamedAfterTheTimeout) {
  const auto begin = Clock::now();
  std::atomic<bool> over = false;
  const auto outcomes = run_threads(3, kShort, [&](Communicator& c) {
    c.barrier({"together", 7});
    if (c.rank() == 2) {
      while (!over) std::this_thread::sleep_for(milliseconds(1));
    } else {
      const auto end = std::shared_ptr<void>(nullptr, [&](void*) { over = true; });
      c.barrier({"without rank 2", 8});
    }
    c.barrier({"never", 9});
  });
  EXPECT_LT(Clock::now() - begin, milliseconds(5000));
  EXPECT_TRUE(outcomes[0].starts_with("TimeoutError") || outcomes[1].starts_with("TimeoutError"));
  for (const std::string& outcome : outcomes) {
    EXPECT_TRUE(contains(outcome, "barrier ('without rank 2' 8)")) << outcome;
    EXPECT_TRUE(contains(outcome, "rank 2, whose last of 1 collectives is barrier ('together' 7)")) << outcome;
  }
}

// Catches an abort that reaches only waits that begin after it, or only other ranks.
TEST(ThreadCommunicator, AbortEndsPresentAndFutureWaits) {
  const auto outcomes = run_threads(3, kRankTimeout, [](Communicator& c) {
    if (c.rank() == 1) {
      std::this_thread::sleep_for(milliseconds(30));
      c.abort("out of cheese");
      c.abort("a later reason");
    }
    const std::string first = outcome_of([&] { c.wait_until([] { return false; }, -1, "nothing"); });
    EXPECT_TRUE(contains(first, "out of cheese")) << first;
    c.barrier({"later", 0});
  });
  for (const std::string& outcome : outcomes) {
    EXPECT_TRUE(outcome.starts_with("PeerError")) << outcome;
    EXPECT_TRUE(contains(outcome, "out of cheese")) << outcome;
  }
  EXPECT_TRUE(contains(outcomes[0], "rank 1 aborted")) << outcomes[0];
}

// Catches peers that wait out the timeout although the rank they wait for has gone.
TEST(ThreadCommunicator, LeavingEarlyIsAnErrorForWhoeverWaits) {
  auto communicators = make_thread_communicators(2, kRankTimeout);
  communicators[1].reset();
  const std::string outcome = outcome_of([&] { communicators[0]->barrier({"alone", 0}); });
  EXPECT_TRUE(
      outcome.starts_with("PeerError: rank 1 has reached the end of its script, or closed its engine, while rank 0"))
      << outcome;
}

// Catches an error for a rank that leaves after it has done its part.
TEST(ThreadCommunicator, LeavingAfterTheLastCollectiveIsFine) {
  for (int i = 0; i < 50; ++i) {
    auto communicators = make_thread_communicators(2, kRankTimeout);
    std::string outcome;
    std::thread other([&, mine = std::move(communicators[1])]() mutable {
      mine->barrier({"last", 0});
      mine.reset();
    });
    outcome = outcome_of([&] { communicators[0]->barrier({"last", 0}); });
    other.join();
    EXPECT_EQ(outcome, "");
  }
}

// Catches a rank that, by an exception, drops a work whose buffers peers still read.
TEST(ThreadCommunicator, AnErrorThatPassesAWorkTellsThePeers) {
  const auto outcomes = run_threads(2, kRankTimeout, [](Communicator& c) {
    std::vector<std::byte> whole(200000);
    const auto work = c.all_gather(whole.data(), whole.data(), 100000, {"gather page", 3});
    if (c.rank() == 1) throw ConfigError("my own problem");
    work->wait();
  });
  EXPECT_EQ(outcomes[1], "my own problem");
  EXPECT_TRUE(contains(outcomes[0], "rank 1 aborted: an error ended its all_gather of 100000 bytes ('gather page' 3)"))
      << outcomes[0];
}

// Catches works that only advance when the rank that started them waits for exactly them (deadlock).
TEST(ThreadCommunicator, EveryWaitAdvancesEarlierWorks) {
  const auto outcomes = run_threads(2, milliseconds(5000), [](Communicator& c) {
    const auto flag = c.allocate(64, "flag");
    auto* own = reinterpret_cast<std::atomic<int>*>(flag->data());
    std::vector<float> data(100000, 1.0f);
    const auto work = c.all_reduce(data.data(), 100000, DType::kFloat32, {"sum", 0}, {});
    if (c.rank() == 0) {
      work->wait();
      own->store(1, std::memory_order_release);
    } else {
      const auto* theirs = reinterpret_cast<const std::atomic<int>*>(c.peer_address(0, own));
      c.wait_until([&] { return theirs->load(std::memory_order_acquire) == 1; }, 0, "rank 0's flag");
      EXPECT_TRUE(work->poll());
    }
    EXPECT_EQ(std::accumulate(data.begin(), data.end(), 0.0), 200000.0);
    c.barrier({"flag is free", 0});
  });
  for (const std::string& outcome : outcomes) EXPECT_EQ(outcome, "");
}

/// Two ranks driven by one thread: `start` starts a collective of a rank. Each round polls all works of rank 0, then
/// those of rank 1. Returns the rounds until all are complete, or 100.
int rounds_until_complete(std::vector<std::unique_ptr<Communicator>>& ranks, int count,
                          const std::function<WorkPtr(Communicator&, int)>& start) {
  std::vector<WorkPtr> works[2];
  for (std::size_t r = 0; r < 2; ++r) {
    for (int i = 0; i < count; ++i) works[r].push_back(start(*ranks[r], i));
  }
  for (int round = 1; round <= 100; ++round) {
    bool complete = true;
    for (auto& of_rank : works) {
      for (auto& work : of_rank) complete &= work->poll();
    }
    if (complete) return round;
  }
  return 100;
}

// Catches ranks that must meet once for every collective although all ranks have started all of them: a rank that
// shares its core with another program then waits for its turn as many times.
TEST(ThreadCommunicator, ManyCollectivesTakeAsManyMeetingsAsOne) {
  constexpr std::int64_t kNumel = 4096;
  constexpr int kCount = 20;
  auto ranks = make_thread_communicators(2, kRankTimeout);
  std::unique_ptr<Memory> memories[2];
  std::thread other([&] { memories[1] = ranks[1]->allocate(kCount * kNumel * 4, "data"); });
  memories[0] = ranks[0]->allocate(kCount * kNumel * 4, "data");
  other.join();
  const auto data = [&](int rank, int i) { return reinterpret_cast<float*>(memories[rank]->data()) + i * kNumel; };
  const auto sum = [&](Communicator& c, int i) {
    return c.all_reduce(data(c.rank(), i), kNumel, DType::kFloat32, {"sum", i}, {});
  };
  for (int r = 0; r < 2; ++r) std::fill_n(data(r, 0), kCount * kNumel, static_cast<float>(r + 1));
  const int rounds_of_one = rounds_until_complete(ranks, 1, sum);
  for (int r = 0; r < 2; ++r) std::fill_n(data(r, 0), kCount * kNumel, static_cast<float>(r + 1));
  EXPECT_EQ(rounds_until_complete(ranks, kCount, sum), rounds_of_one);
  for (int r = 0; r < 2; ++r) {
    EXPECT_TRUE(std::all_of(data(r, 0), data(r, kCount), [](float x) { return x == 3.0f; }));
  }
  // One that has to pass through the bounce buffers does not keep those before it from being done.
  const std::vector<float> own[2] = {std::vector<float>(kNumel, 5.0f), std::vector<float>(kNumel, 5.0f)};
  std::vector<float> wholes[2] = {std::vector<float>(2 * kNumel), std::vector<float>(2 * kNumel)};
  const auto mixed = [&](Communicator& c, int i) {
    if (i != 1) return sum(c, i);
    return c.all_gather(own[c.rank()].data(), wholes[c.rank()].data(), kNumel * 4, {"staged", i});
  };
  EXPECT_LT(rounds_until_complete(ranks, 3, mixed), 10);
  for (int r = 0; r < 2; ++r) {
    EXPECT_TRUE(std::all_of(data(r, 0), data(r, 1), [](float x) { return x == 6.0f; }));
    EXPECT_TRUE(std::all_of(data(r, 2), data(r, 3), [](float x) { return x == 6.0f; }));
    EXPECT_TRUE(std::all_of(wholes[r].begin(), wholes[r].end(), [](float x) { return x == 5.0f; }));
  }
}

// Catches a starting rank that overwrites what slow peers have not read yet.
TEST(ThreadCommunicator, FastRankIsHeldBackNotLost) {
  const auto outcomes = run_threads(2, kRankTimeout, [](Communicator& c) {
    std::vector<std::int64_t> wholes(2000);
    std::vector<std::int64_t> mine(1000);
    std::vector<WorkPtr> works;
    for (std::int64_t i = 0; i < 1000; ++i) {
      if (c.rank() == 1 && i % 200 == 0) std::this_thread::sleep_for(milliseconds(5));
      const auto at = static_cast<std::size_t>(i);
      mine[at] = i * 2 + c.rank();
      works.push_back(c.all_gather(&mine[at], &wholes[at * 2], 8, {"count", i}));
    }
    for (const auto& work : works) work->wait();
    for (std::int64_t i = 0; i < 2000; ++i) ASSERT_EQ(wholes[static_cast<std::size_t>(i)], i);
  });
  for (const std::string& outcome : outcomes) EXPECT_EQ(outcome, "");
}

// Catches figures in reports that do not match what a ring would send.
TEST(ThreadCommunicator, CountsTheBytesThatMove) {
  run_threads(4, kRankTimeout, [](Communicator& c) {
    std::vector<float> whole(40000);
    std::vector<float> shard(10000);
    c.all_gather(shard.data(), whole.data(), 40000, {"a", 0})->wait();
    EXPECT_EQ(c.bytes_moved(), 3 * 40000);
    c.reduce_scatter(whole.data(), shard.data(), 10000, DType::kFloat32, DType::kFloat32, false, {"b", 0}, {})->wait();
    EXPECT_EQ(c.bytes_moved(), 6 * 40000);
    c.all_reduce(whole.data(), 40000, DType::kFloat32, {"c", 0}, {})->wait();
    EXPECT_NEAR(static_cast<double>(c.bytes_moved()), 12 * 40000, 1000);
  });
}

// Catches arguments that would read outside buffers, or sums that have no meaning.
TEST(ThreadCommunicator, RefusesArgumentsThatMakeNoSense) {
  const auto communicators = make_thread_communicators(1, kShort);
  Communicator& c = *communicators[0];
  std::byte data[64] = {};
  const auto is_refused = [](const std::function<void()>& call) { return outcome_of(call).starts_with("UsageError"); };
  EXPECT_TRUE(is_refused([&] { c.all_gather(data, data, -1, {}); }));
  EXPECT_TRUE(is_refused([&] { c.broadcast(data, 8, 1, {}); }));
  EXPECT_TRUE(is_refused([&] { c.all_reduce(data, 8, DType::kOther, {}, {}); }));
  EXPECT_TRUE(is_refused([&] { c.reduce_scatter(data, data, 8, DType::kFloat32, DType::kBFloat16, false, {}, {}); }));
  EXPECT_TRUE(is_refused([&] { c.reduce_scatter(data, data, 8, DType::kBFloat16, DType::kBFloat16, true, {}, {}); }));
  EXPECT_TRUE(is_refused([&] { c.peer_address(0, data); }));
  EXPECT_TRUE(is_refused([&] { c.allocate(-1, "negative"); }));
  EXPECT_TRUE(is_refused([&] { c.allocate(4096, "small")->discard(0, 4097); }));
  EXPECT_THROW(make_thread_communicators(0, kShort), ConfigError);
}

// Catches ranks that allocate different sizes and would map less than they address.
TEST(ThreadCommunicator, DifferentAllocationsAreRefused) {
  const auto outcomes =
      run_threads(2, kRankTimeout, [](Communicator& c) { c.allocate(4096 * (1 + c.rank()), "shards"); });
  for (const std::string& outcome : outcomes) EXPECT_TRUE(contains(outcome, "('allocate' 8192)")) << outcome;
}

int blocking_depth_max = 0;
thread_local int blocking_depth = 0;

// Catches an interpreter lock that is held while this rank waits for another thread that needs it.
TEST(ThreadCommunicator, SleepingIsAnnounced) {
  struct Scope : BlockingScope {
    Scope() { blocking_depth_max = std::max(blocking_depth_max, ++blocking_depth); }
    ~Scope() override { --blocking_depth; }
  };
  set_blocking_scope_factory([]() -> std::unique_ptr<BlockingScope> { return std::make_unique<Scope>(); });
  auto communicators = make_thread_communicators(2, kShort);
  EXPECT_THROW(communicators[0]->barrier({"alone", 0}), TimeoutError);
  set_blocking_scope_factory(nullptr);
  EXPECT_EQ(blocking_depth_max, 1);
  EXPECT_EQ(blocking_depth, 0);
}

// Catches a wait for a device that never ends, that does not abort the peers, or that is not aborted by them.
TEST(PollUntil, EndsByTimeoutAndByAPeersAbort) {
  const auto begin = Clock::now();
  const auto outcomes = run_threads(2, kShort, [](Communicator& c) {
    if (c.rank() == 0)
      poll_until(
          c, [] { return false; }, "a copy that never arrives");
    std::this_thread::sleep_for(kShort / 2);
    poll_until(
        c, [] { return false; }, "a device");
  });
  EXPECT_EQ(outcomes[0].find("TimeoutError: rank 0 waited 500 ms for a copy that never arrives"), 0) << outcomes[0];
  EXPECT_EQ(outcomes[1].find("PeerError: rank 0 aborted: rank 0 waited 500 ms"), 0) << outcomes[1];
  EXPECT_LT(Clock::now() - begin, kRankTimeout / 2);
}

// Catches a wait that ends early, or sleeps on when its condition has come.
TEST(PollUntil, EndsWhenItsConditionDoes) {
  const auto communicator = std::move(make_thread_communicators(1, kRankTimeout)[0]);
  std::atomic<bool> done = false;
  std::thread device([&] {
    std::this_thread::sleep_for(milliseconds(30));
    done = true;
  });
  poll_until(
      *communicator, [&] { return done.load(); }, "a device");
  EXPECT_TRUE(done);
  device.join();
}

}  // namespace
}  // namespace zeropage::comm
