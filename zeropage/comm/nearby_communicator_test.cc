// Ranks with nearby ones, as threads.
#include "zeropage/comm/nearby_communicator.h"

#include <gtest/gtest.h>

#include "zeropage/comm/testing/communicator_conformance.h"
#include "zeropage/comm/testing/test_ranks.h"

namespace zeropage::comm {
namespace {

/// Runs `body` on four ranks with groups of two nearby ones.
std::vector<std::string> run_with_pairs(const RankBody& body) {
  std::vector<std::vector<std::unique_ptr<Communicator>>> pairs;
  for (int pair = 0; pair < 2; ++pair) pairs.push_back(make_thread_communicators(2, kRankTimeout));
  return run_threads(4, kRankTimeout, [&](Communicator& all) {
    const auto pair = static_cast<std::size_t>(all.rank() / 2);
    const auto place = static_cast<std::size_t>(all.rank() % 2);
    body(*with_nearby(std::shared_ptr<Communicator>(&all, [](auto*) {}), std::move(pairs[pair][place])));
  });
}

// Catches collectives of all ranks that only reach nearby ones, and the other way round.
TEST(NearbyCommunicator, GathersAmongTwoRanksBesideAllCollectives) {
  const auto outcomes = run_with_pairs([](Communicator& c) {
    run_conformance(c);
    const auto shard = c.allocate_nearby(5000, "second shards");
    std::fill_n(shard->data(), 5000, static_cast<std::byte>(c.rank() + 1));
    std::vector<std::byte> whole(10000);
    c.all_gather_nearby(shard->data(), whole.data(), 5000, {"nearby"})->wait();
    const int first = c.rank() / 2 * 2;
    for (const int place : {0, 1}) {
      for (const std::size_t at : {0, 4999}) {
        const auto expected = static_cast<std::byte>(first + place + 1);
        if (whole[static_cast<std::size_t>(place) * 5000 + at] != expected) throw Error("a shard of another rank");
      }
    }
    c.barrier({"before the memory is freed"});
  });
  for (const std::string& outcome : outcomes) EXPECT_EQ(outcome, "");
}

// Catches an abort that does not reach nearby ranks, and an abort of theirs that does not reach the others.
TEST(NearbyCommunicator, AnAbortEndsBothKindsOfWaits) {
  const auto outcomes = run_with_pairs([](Communicator& c) {
    c.barrier({"begin"});
    if (c.rank() == 0) c.abort("disk full");
    std::byte data[10] = {};
    for (;;) c.rank() == 1 ? c.all_gather_nearby(data, data, 5, {"nearby"})->wait() : c.barrier({"all"});
  });
  for (const std::string& outcome : outcomes) EXPECT_TRUE(contains(outcome, "disk full")) << outcome;
}

// Catches groups that reach over the end of a host, and a message that does not say what would fit.
TEST(NearbyCommunicator, GroupsMustFitTheRanksOfAHost) {
  check_nearby({5, 1, 8, 4}, 2);
  check_nearby({5, 1, 8, 4}, 4);
  EXPECT_THROW(check_nearby({5, 1, 8, 4}, 3), ConfigError);
  EXPECT_THROW(check_nearby({5, 1, 8, 4}, 8), ConfigError);
  EXPECT_THROW(check_nearby({5, 2, 8, 4}, 2), ConfigError);  // dealt out in turn
  const std::string outcome = outcome_of([] { check_nearby({5, 1, 8, 4}, 3); });
  EXPECT_TRUE(
      contains(outcome, "zero_hpz_partition_size: expected a divisor of the number of ranks on each host, got 3"))
      << outcome;
}

}  // namespace
}  // namespace zeropage::comm
