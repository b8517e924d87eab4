// An abort ends the waits of all ranks of a job, also of those that share no communicator with the rank that aborts.
#include <gtest/gtest.h>

#include <atomic>
#include <functional>
#include <thread>

#include "zeropage/comm/hosts/group_communicator.h"
#include "zeropage/comm/hosts/hosts_communicator.h"
#include "zeropage/comm/hosts/hosts_queue.h"
#include "zeropage/comm/nearby_communicator.h"
#include "zeropage/comm/testing/test_ranks.h"

namespace zeropage::comm {
namespace {

using std::chrono::milliseconds;
using Clock = std::chrono::steady_clock;
using Parts = std::vector<std::unique_ptr<Communicator>>;

constexpr HostGrid kGrid{2, 2};
constexpr milliseconds kEndsWithin{5000};

/// The communicators of ranks of several hosts, as threads, whose parts share `aborts`.
Parts make_rank_grid(const HostGrid& grid, milliseconds timeout, const std::shared_ptr<Aborts>& aborts) {
  std::vector<Parts> hosts;
  std::vector<Parts> columns;
  for (int h = 0; h < grid.hosts; ++h) {
    const auto own = aborts_of_side(aborts, Side::kInside, grid, grid.rank_at(h, 0), "host");
    hosts.push_back(make_thread_communicators(grid.local_size, timeout, own));
  }
  for (int c = 0; c < grid.local_size; ++c) {
    const auto own = aborts_of_side(aborts, Side::kBetween, grid, c, "host");
    columns.push_back(make_thread_communicators(grid.hosts, timeout, own));
  }
  Parts ranks;
  for (int r = 0; r < grid.size(); ++r) {
    const auto host = static_cast<std::size_t>(grid.host_of(r));
    const auto local = static_cast<std::size_t>(grid.local_of(r));
    ranks.push_back(make_hosts_communicator(std::move(hosts[host][local]), std::move(columns[local][host]),
                                            /*deterministic_reduction=*/true, aborts));
  }
  return ranks;
}

/// Rank 0 aborts its communicator of `failed` while rank 3, on another host and in another column or group, runs `wait`
/// on its one of `waited`. Ranks 1 and 2 compute. Returns rank 3's outcome.
std::string outcome_of_rank_3(const Parts& failed, const Parts& waited, const RankBody& wait) {
  std::string outcome;
  std::thread far_away([&] { outcome = outcome_of([&] { wait(*waited[3]); }); });
  std::this_thread::sleep_for(milliseconds(100));
  failed[0]->abort("out of coffee");
  far_away.join();
  return outcome;
}

char buffer[64];

struct FarWait {
  std::string name;
  RankBody body;  ///< waits for a rank that never comes
};

class AbortFarAway : public testing::TestWithParam<FarWait> {
 protected:
  void TearDown() override { EXPECT_LT(Clock::now() - begin_, kEndsWithin); }

  const Clock::time_point begin_ = Clock::now();
};

// Catches an abort that only reaches ranks of the same host and column, and those of others only when these communicate
// again; and a reason with the number that a rank has on its host or in its column.
TEST_P(AbortFarAway, EndsWaitsOnTheSameCommunicator) {
  const Parts ranks = make_rank_grid(kGrid, kRankTimeout, make_thread_aborts());
  EXPECT_EQ(outcome_of_rank_3(ranks, ranks, GetParam().body), "PeerError: rank 0 of the job aborted: out of coffee");
}

// Catches communicators of one job that abort separately, such as those of the parameters and the gradients of a step.
TEST_P(AbortFarAway, EndsWaitsOnAnotherCommunicator) {
  const auto aborts = make_thread_aborts();
  const Parts parameters = make_rank_grid(kGrid, kRankTimeout, aborts);
  const Parts gradients = make_rank_grid(kGrid, kRankTimeout, aborts);
  EXPECT_EQ(outcome_of_rank_3(gradients, parameters, GetParam().body),
            "PeerError: rank 0 of the job aborted: out of coffee");
}

// Catches the same for groups of ranks and the replicas of their shards.
TEST_P(AbortFarAway, EndsWaitsInAnotherGroup) {
  const Parts ranks = make_thread_groups(2, 2, kRankTimeout);
  EXPECT_EQ(outcome_of_rank_3(ranks, ranks, GetParam().body), "PeerError: rank 0 of the job aborted: out of coffee");
}

INSTANTIATE_TEST_SUITE_P(
    Waits, AbortFarAway,
    testing::Values(FarWait{"Inside", [](Communicator& c) { c.broadcast(buffer, 8, 0, {"from rank 0"})->wait(); }},
                    FarWait{"Between",
                            [](Communicator& c) { c.job().all_gather(buffer, buffer, 8, {"shards"})->wait(); }},
                    FarWait{"Barrier", [](Communicator& c) { c.barrier({"step"}); }},
                    FarWait{"Memory", [](Communicator& c) { c.wait_until([] { return false; }, 0, "a page"); }}),
    [](const auto& info) { return info.param.name; });

// Catches second shards whose ranks learn nothing of an abort, and tell none of their own.
TEST(AbortOfNearbyRanks, AndOfAllAreOne) {
  for (const bool nearby_fails : {true, false}) {
    const Parts ranks = make_rank_grid(kGrid, kRankTimeout, make_thread_aborts());
    std::vector<std::shared_ptr<Communicator>> all;
    for (int r = 2; r < 4; ++r) all.emplace_back(ranks[static_cast<std::size_t>(r)].get(), [](auto*) {});
    auto nearby = make_thread_communicators(2, kRankTimeout, aborts_of(all[1]));
    std::string outcome;
    const auto begin = Clock::now();
    std::thread waits([&] {
      outcome = outcome_of([&] {
        Communicator& waited = nearby_fails ? *ranks[1] : *nearby[1];
        waited.broadcast(buffer, 8, 0, {"never sent"})->wait();
      });
    });
    nearby_fails ? nearby[1]->abort("out of coffee") : ranks[0]->abort("out of coffee");
    waits.join();
    EXPECT_TRUE(contains(outcome, "PeerError: rank")) << outcome;
    EXPECT_TRUE(contains(outcome, "out of coffee")) << outcome;
    EXPECT_LT(Clock::now() - begin, kEndsWithin);
  }
}

// Catches a timeout whose own message, with the missing ranks, is replaced by what peers say about it.
TEST(HostsTimeout, SaysForWhomItWaited) {
  const milliseconds timeout(500);
  const auto outcomes = run_threads(make_rank_grid({2, 1}, timeout, make_thread_aborts()), [&](Communicator& c) {
    if (c.rank() == 0) c.barrier({"step"});
    std::this_thread::sleep_for(2 * timeout);
    c.throw_if_aborted();
  });
  EXPECT_TRUE(contains(outcomes[0], "TimeoutError: among ranks 0, 1 of the job")) << outcomes[0];
  EXPECT_TRUE(contains(outcomes[0], "missing: rank 1")) << outcomes[0];
  EXPECT_TRUE(contains(outcomes[1], "PeerError: among ranks 0, 1 of the job")) << outcomes[1];
  EXPECT_TRUE(contains(outcomes[1], "missing: rank 1")) << outcomes[1];
}

}  // namespace
}  // namespace zeropage::comm
