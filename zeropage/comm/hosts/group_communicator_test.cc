// Ranks in groups, as threads.
#include "zeropage/comm/hosts/group_communicator.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>

#include "zeropage/base/error.h"
#include "zeropage/comm/reduce_kernels.h"
#include "zeropage/comm/testing/communicator_conformance.h"
#include "zeropage/comm/testing/test_ranks.h"

namespace zeropage::comm {
namespace {

struct Groups {
  int groups = 2;
  int count = 2;
};

class GroupCommunicators : public testing::TestWithParam<Groups> {
 protected:
  /// Runs `body` on all ranks, which must end without an error.
  void run(const RankBody& body, bool deterministic_reduction = true) const {
    auto made = make_thread_groups(GetParam().groups, GetParam().count, kRankTimeout, deterministic_reduction);
    for (const std::string& outcome : run_threads(std::move(made), body)) EXPECT_EQ(outcome, "");
  }
  int size() const { return GetParam().groups * GetParam().count; }
};

void require(bool holds, const std::string& what) {
  if (!holds) throw Error(what);
}

/// Values whose fp32 sum depends on the order of the additions.
std::vector<float> terms_of(int rank, std::int64_t numel) {
  std::vector<float> terms(static_cast<std::size_t>(numel));
  for (std::size_t i = 0; i < terms.size(); ++i) {
    terms[i] = std::sin(static_cast<float>(i * 7 + static_cast<std::size_t>(rank) * 13)) *
               std::pow(10.0F, static_cast<float>((i + static_cast<std::size_t>(rank)) % 5));
  }
  return terms;
}

/// Elements [begin, begin + numel) of the sum over `ranks` ranks, in their order.
std::vector<float> sum_in_order(int ranks, std::int64_t whole_numel, std::int64_t begin, std::int64_t numel) {
  std::vector<float> sum(static_cast<std::size_t>(numel), 0.0F);
  for (int rank = 0; rank < ranks; ++rank) {
    const auto terms = terms_of(rank, whole_numel);
    for (std::size_t i = 0; i < sum.size(); ++i) {
      const float term = terms[i + static_cast<std::size_t>(begin)];
      sum[i] = rank == 0 ? term : sum[i] + term;
    }
  }
  return sum;
}

// Catches a job whose ranks are numbered differently, or whose collectives only reach a group.
TEST_P(GroupCommunicators, AllRanksOfTheJobConform) {
  run([&](Communicator& group) {
    require(group.job().size() == size(), "the size of the job");
    require(group.job().rank() == group.group() * group.size() + group.rank(), "the rank in the job");
    if (size() == 4) run_conformance(group.job());  // each shape would take seconds
  });
}

// Catches gathers, broadcasts and exchanges of a group that reach other ranks, or have others' numbers.
TEST_P(GroupCommunicators, OtherCollectivesStayInTheGroup) {
  run([&](Communicator& group) {
    const float mine = static_cast<float>(group.job().rank());
    const auto expected = [&](int place) { return static_cast<float>(group.group() * group.size() + place); };
    std::vector<float> all(static_cast<std::size_t>(group.size()));
    group.all_gather(&mine, all.data(), sizeof(float), {"gather"})->wait();
    for (int place = 0; place < group.size(); ++place) {
      require(all[static_cast<std::size_t>(place)] == expected(place), "a gathered value");
    }
    float from_last = mine;
    group.broadcast(&from_last, sizeof(float), group.size() - 1, {"broadcast"})->wait();
    require(from_last == expected(group.size() - 1), "a broadcast value");
    const std::vector<float> sent(static_cast<std::size_t>(group.size()), mine);
    group.all_to_all(sent.data(), all.data(), sizeof(float), {"exchange"})->wait();
    require(all[0] == expected(0), "an exchanged value");
    const char place = static_cast<char>('0' + group.job().rank());
    const std::string places = all_gather_small(group, {&place, 1}, {"small"});
    require(places.size() == all.size() && places[0] == '0' + group.group() * group.size(), "a small exchange");
    group.barrier({"barrier"});
  });
}

// Catches sums over a group only, sums in another order than the job's ranks, and replicas with different bits.
TEST_P(GroupCommunicators, SumsAreThoseOfAllRanksInTheirOrder) {
  constexpr std::int64_t kShard = 5003;
  run([&](Communicator& group) {
    const std::int64_t whole_numel = kShard * group.size();
    const auto expected = sum_in_order(size(), whole_numel, group.rank() * kShard, kShard);
    auto whole = terms_of(group.job().rank(), whole_numel);
    std::vector<float> out(static_cast<std::size_t>(kShard), 0.5F);
    std::int64_t reported = 0;
    std::vector<WorkPtr> works;
    works.push_back(group.reduce_scatter(whole.data(), out.data(), kShard, DType::kFloat32, DType::kFloat32, true,
                                         {"added", 1}, [&](std::int64_t, std::int64_t numel) { reported += numel; }));
    std::vector<float> again(out.size());
    works.push_back(group.reduce_scatter(whole.data(), again.data(), kShard, DType::kFloat32, DType::kFloat32, false,
                                         {"assigned", 2}, {}));
    for (auto& work : works) work->wait();
    require(again == expected, "a sum");
    for (std::size_t i = 0; i < out.size(); ++i) require(out[i] == 0.5F + expected[i], "a sum that was added");
    require(reported == kShard, "elements that were reported");
    // In place, as gradients that are whole on every rank.
    float* const own = whole.data() + group.rank() * kShard;
    group.reduce_scatter(whole.data(), own, kShard, DType::kFloat32, DType::kFloat32, false, {"in place", 3}, {})
        ->wait();
    require(std::vector<float>(own, own + kShard) == expected, "a sum in place");
  });
}

// Catches sums of 16-bit terms that are rounded when one group sends them to the next.
TEST_P(GroupCommunicators, SumsOfBf16AreRoundedOnce) {
  constexpr std::int64_t kShard = 1000;
  run([&](Communicator& group) {
    const std::int64_t numel = kShard * group.size();
    std::vector<std::uint16_t> whole(static_cast<std::size_t>(numel));  // bf16: the upper half of fp32
    std::vector<float> sums(static_cast<std::size_t>(kShard));
    const auto wide = terms_of(group.job().rank(), numel);
    for (std::size_t i = 0; i < whole.size(); ++i) {
      whole[i] = static_cast<std::uint16_t>(std::bit_cast<std::uint32_t>(wide[i]) >> 16);
    }
    group.reduce_scatter(whole.data(), sums.data(), kShard, DType::kBFloat16, DType::kFloat32, false, {"bf16"}, {})
        ->wait();
    std::vector<std::uint16_t> all(whole.size() * static_cast<std::size_t>(size()));
    group.job().all_gather(whole.data(), all.data(), 2 * numel, {"terms"})->wait();
    std::vector<const std::byte*> terms;
    for (int rank = 0; rank < size(); ++rank) {
      terms.push_back(reinterpret_cast<const std::byte*>(all.data() + rank * numel + group.rank() * kShard));
    }
    std::vector<float> expected(sums.size());
    reduce_ranks(terms, reinterpret_cast<std::byte*>(expected.data()), kShard, DType::kBFloat16, DType::kFloat32, false,
                 {});
    require(sums == expected, "a sum of bf16 terms");
  });
}

// Catches an all_reduce over the group only, parts that are gathered at wrong places, and remainders that are left out.
TEST_P(GroupCommunicators, AllReduceSumsOverAllRanks) {
  run([&](Communicator& group) {
    for (const std::int64_t numel : {std::int64_t{6000}, std::int64_t{6001}, std::int64_t{0}}) {
      auto data = terms_of(group.job().rank(), numel);
      group.all_reduce(data.data(), numel, DType::kFloat32, {"all", numel}, {})->wait();
      require(data == sum_in_order(size(), numel, 0, numel), fmt::format("the sum of {} elements", numel));
    }
  });
}

// Catches sums by groups that miss a group, and replicas that do not get the same bits.
TEST_P(GroupCommunicators, SumsByGroupsAreTheSameOnAllReplicas) {
  constexpr std::int64_t kShard = 3000;
  const RankBody body = [&](Communicator& group) {
    const std::int64_t whole_numel = kShard * group.size();
    const auto expected = sum_in_order(size(), whole_numel, group.rank() * kShard, kShard);
    const auto whole = terms_of(group.job().rank(), whole_numel);
    std::vector<float> out(static_cast<std::size_t>(kShard));
    group.reduce_scatter(whole.data(), out.data(), kShard, DType::kFloat32, DType::kFloat32, false, {"sum"}, {})
        ->wait();
    for (std::size_t i = 0; i < out.size(); ++i) {
      require(std::abs(out[i] - expected[i]) <= 1e-2F, fmt::format("{} instead of {}", out[i], expected[i]));
    }
    std::vector<float> all(out.size() * static_cast<std::size_t>(size()));
    group.job().all_gather(out.data(), all.data(), 4 * kShard, {"sums"})->wait();
    for (int other = group.rank(); other < size(); other += group.size()) {
      const float* theirs = all.data() + other * kShard;
      require(std::equal(out.begin(), out.end(), theirs), fmt::format("the bits of rank {}", other));
    }
  };
  run(body, /*deterministic_reduction=*/false);
}

INSTANTIATE_TEST_SUITE_P(Shapes, GroupCommunicators, testing::Values(Groups{2, 2}, Groups{3, 2}, Groups{2, 3}));

// Catches a rank of another group that ends, and is waited for until the timeout, or is called by another number.
TEST(GroupCommunicator, ARankOfAnotherGroupThatAbortsIsNamed) {
  const auto outcomes = run_threads(make_thread_groups(2, 2, kRankTimeout), [](Communicator& group) {
    if (group.job().rank() == 3) return group.abort("the test ends it");
    std::vector<float> whole(2000, 1.0F), out(1000);
    for (;;)
      group.reduce_scatter(whole.data(), out.data(), 1000, DType::kFloat32, DType::kFloat32, false, {"s"}, {})->wait();
  });
  for (int rank = 0; rank < 3; ++rank) {
    const auto& outcome = outcomes[static_cast<std::size_t>(rank)];
    EXPECT_TRUE(contains(outcome, "PeerError") && contains(outcome, "rank 3 of the job aborted: the test ends it"))
        << outcome;
  }
}

// Catches groups that reach over the end of a host.
TEST(GroupCommunicator, GroupsMustFitTheRanksOfAHost) {
  check_groups({5, 1, 8, 4}, 2);
  check_groups({5, 1, 8, 4}, 4);
  EXPECT_THROW(check_groups({5, 1, 8, 4}, 8), ConfigError);
  EXPECT_THROW(check_groups({5, 2, 8, 4}, 2), ConfigError);  // dealt out in turn
  const std::string outcome = outcome_of([] { check_groups({5, 1, 8, 4}, 3); });
  EXPECT_TRUE(contains(outcome, "zeropage.shard_ranks: expected a divisor of the number of ranks on each host, got 3"))
      << outcome;
}

}  // namespace
}  // namespace zeropage::comm
