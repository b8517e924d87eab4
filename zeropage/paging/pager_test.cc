// The pager alone: gathers, pins, eviction, write-back and versions, on ranks as threads.
#include "zeropage/paging/pager.h"

#include <gtest/gtest.h>

#include <atomic>
#include <cstring>
#include <optional>
#include <random>
#include <thread>

#include "zeropage/comm/nearby_communicator.h"
#include "zeropage/comm/testing/delayed_ranks.h"
#include "zeropage/comm/testing/fault_communicator.h"
#include "zeropage/comm/testing/test_ranks.h"

namespace zeropage::paging {
namespace {

using std::chrono::milliseconds;

constexpr int kPages = 6;
constexpr std::int64_t kPageNumel = 256;
constexpr std::int64_t kPageBytes = 4 * kPageNumel;

/// One parameter of 256 elements per page.
std::shared_ptr<const layout::Layout> make_layout(int world) {
  std::vector<layout::ParameterSpec> specs(kPages);
  for (int i = 0; i < kPages; ++i) {
    specs[i].name.append("p").append(std::to_string(i));
    specs[i].numel = kPageNumel;
  }
  return std::make_shared<const layout::Layout>(
      specs, layout::LayoutOptions{.world_size = world, .page_numel = 1, .shard_alignment_numel = 16});
}

float value_of(int page, std::int64_t element, int version = 0) {
  return static_cast<float>(1000 * page + element) + 0.25f * static_cast<float>(version);
}

/// A rank's pager whose shards hold value_of.
class Rank {
 public:
  Rank(comm::Communicator& communicator, const PagerOptions& options)
      : communicator_(communicator),
        pager(make_layout(communicator.size()), std::vector<bool>(kPages, true),
              std::shared_ptr<comm::Communicator>(&communicator, [](auto*) {}), c10::Device(c10::kCPU),
              std::make_shared<Ledger>(), options) {
    for (int page = 0; page < kPages; ++page) fill_shard(page, 0);
    communicator_.barrier({"shards are filled"});
  }

  void fill_shard(int page, int version) {
    const std::int64_t numel = kPageNumel / communicator_.size();
    auto* shard = reinterpret_cast<float*>(pager.shard(page));
    for (std::int64_t i = 0; i < numel; ++i) shard[i] = value_of(page, communicator_.rank() * numel + i, version);
  }

  /// The pinned page's frame holds every rank's values.
  bool holds(int page, int version = 0) const {
    const auto* frame = reinterpret_cast<const float*>(pager.frame(page));
    for (std::int64_t i = 0; i < kPageNumel; ++i) {
      if (frame[i] != value_of(page, i, version)) return false;
    }
    return true;
  }

  /// As an operator does; false when the values were wrong.
  bool use(int page, int version = 0) {
    pager.touch(page, /*writes=*/false, "op");
    const bool right = holds(page, version);
    pager.unpin(page);
    return right;
  }

 private:
  comm::Communicator& communicator_;

 public:
  Pager pager;
};

/// Runs the body on `world` threads; two_sided hides peers' memory and delays every collective.
void run(int world, bool two_sided, const comm::RankBody& body) {
  for (const auto& outcome : comm::run_threads(world, comm::kRankTimeout, two_sided, body)) EXPECT_EQ(outcome, "");
}

class PagerOnRanks : public testing::TestWithParam<std::tuple<int, bool>> {};

// Catches wrong offsets of shards in frames, frames handed out twice, eviction of what is in use.
TEST_P(PagerOnRanks, RandomUsesSeeTheRightValues) {
  const auto [world, two_sided] = GetParam();
  run(world, two_sided, [](comm::Communicator& communicator) {
    Rank rank(communicator, {.max_live_bytes = 3 * kPageBytes, .prefetch_bytes = 2 * kPageBytes});
    std::mt19937 random(5);  // the same on every rank: two-sided gathers need that
    for (int pass = 0; pass < 5; ++pass) {
      for (int i = 0; i < 40; ++i) {
        const int page = static_cast<int>(random() % kPages);
        const int other = static_cast<int>(random() % kPages);
        rank.pager.touch(page, false, "op");
        EXPECT_TRUE(rank.use(other));
        EXPECT_TRUE(rank.holds(page));
        rank.pager.unpin(page);
        EXPECT_LE(rank.pager.stats().live_bytes, 3 * kPageBytes);
      }
      rank.pager.end_pass();
    }
    EXPECT_GT(rank.pager.stats().evictions, 0);
    communicator.barrier({"done"});
  });
}

// Catches a page read before its owner has updated it, and frames that stay after an update.
TEST_P(PagerOnRanks, UpdatesAreSeenAfterPublishing) {
  const auto [world, two_sided] = GetParam();
  run(world, two_sided, [](comm::Communicator& communicator) {
    Rank rank(communicator, {.max_live_bytes = 3 * kPageBytes, .prefetch_bytes = kPageBytes});
    const std::vector<int> all{0, 1, 2, 3, 4, 5};
    for (int version = 0; version < 8; ++version) {
      for (int page : all) EXPECT_TRUE(rank.use(page, version)) << "page " << page << " version " << version;
      rank.pager.end_pass();
      communicator.barrier({"global check"});
      rank.pager.drop_stale(all);
      if (communicator.rank() == 0) std::this_thread::sleep_for(milliseconds(2));  // peers must wait for this owner
      for (int page : all) {
        rank.fill_shard(page, version + 1);
        rank.pager.publish(page);
      }
    }
    communicator.barrier({"done"});
  });
}

// Catches pages that are gathered from all ranks although nearby ones have them, and values of before an update or a
// write.
TEST(Pager, GathersFromNearbyRanksUntilAPageChanges) {
  constexpr int kWorld = 4;
  std::vector<std::vector<std::unique_ptr<comm::Communicator>>> groups;
  for (int group = 0; group < kWorld / 2; ++group)
    groups.push_back(comm::make_thread_communicators(2, comm::kRankTimeout));
  run(kWorld, /*two_sided=*/true, [&](comm::Communicator& all) {
    const auto with_nearby =
        comm::with_nearby(std::shared_ptr<comm::Communicator>(&all, [](auto*) {}),
                          std::move(groups[static_cast<std::size_t>(all.rank() / 2)][all.rank() % 2]));
    Rank rank(*with_nearby, {.max_live_bytes = kPageBytes});
    const auto gathers_from_all = [&](const std::vector<int>& versions) {
      const std::int64_t before = all.bytes_moved();
      for (int page = 0; page < kPages; ++page) EXPECT_TRUE(rank.use(page, versions[page])) << "page " << page;
      return (all.bytes_moved() - before) / (kPageBytes / kWorld * (kWorld - 1));
    };
    EXPECT_EQ(gathers_from_all({0, 0, 0, 0, 0, 0}), kPages);
    EXPECT_EQ(gathers_from_all({0, 0, 0, 0, 0, 0}), 0);
    rank.pager.end_pass();
    all.barrier({"global check"});
    rank.pager.drop_stale({1, 2});
    for (const int page : {1, 2}) {
      rank.fill_shard(page, 1);
      rank.pager.publish(page);
    }
    EXPECT_EQ(gathers_from_all({0, 1, 1, 0, 0, 0}), 2);
    rank.pager.touch(3, /*writes=*/true, "op");
    auto* frame = reinterpret_cast<float*>(rank.pager.frame(3));
    for (std::int64_t i = 0; i < kPageNumel; ++i) frame[i] = value_of(3, i, 5);
    rank.pager.unpin(3);
    EXPECT_EQ(gathers_from_all({0, 1, 1, 5, 0, 0}), 1);
    EXPECT_EQ(gathers_from_all({0, 1, 1, 5, 0, 0}), 0);
    all.barrier({"done"});
  });
}

// Catches writes that are lost when their page is evicted in the middle of a pass, or at its end.
TEST_P(PagerOnRanks, WrittenPagesKeepTheirValues) {
  const auto [world, two_sided] = GetParam();
  run(world, two_sided, [](comm::Communicator& communicator) {
    Rank rank(communicator, {.max_live_bytes = kPageBytes});
    const auto write = [&](int page, int version) {
      rank.pager.touch(page, /*writes=*/true, "op");
      auto* frame = reinterpret_cast<float*>(rank.pager.frame(page));
      for (std::int64_t i = 0; i < kPageNumel; ++i) frame[i] = value_of(page, i, version);
      rank.pager.unpin(page);
    };
    write(0, 1);
    write(1, 1);  // evicts 0, which is dirty
    EXPECT_TRUE(rank.use(0, 1));
    EXPECT_TRUE(rank.use(1, 1));
    write(2, 1);
    rank.pager.end_pass();
    communicator.barrier({"global check"});
    rank.pager.write_back_dirty();
    rank.pager.drop_stale({2});
    EXPECT_TRUE(rank.use(2, 1));
    EXPECT_TRUE(rank.use(3, 0));
    communicator.barrier({"done"});
  });
}

INSTANTIATE_TEST_SUITE_P(Ranks, PagerOnRanks, testing::Combine(testing::Values(1, 2, 4), testing::Bool()));

// Catches eviction of what is needed next: with room for two of three pages in a known order, Belady's rule gathers
// each page of the last pass's order at most as often as it must.
TEST(Pager, EvictsWhatIsNeededLast) {
  run(1, false, [](comm::Communicator& communicator) {
    Rank rank(communicator, {.max_live_bytes = 2 * kPageBytes});
    const std::vector<int> order{0, 1, 2, 1, 0, 1, 2, 1};
    for (int page : order) rank.use(page);  // unknown order: the least recently used one is evicted
    rank.pager.end_pass();
    rank.pager.trim(/*evict_all=*/true);
    const auto before = rank.pager.stats().faults;
    for (int page : order) rank.use(page);
    EXPECT_EQ(rank.pager.stats().faults - before, 5);  // 0, 1, 2 first; then 0 and 2 in place of each other
  });
}

// Catches prefetch that waits for use, or exceeds its budget.
TEST(Pager, GathersAheadWithinTheBudget) {
  run(2, true, [](comm::Communicator& communicator) {
    Rank rank(communicator, {.max_live_bytes = 4 * kPageBytes, .prefetch_bytes = 2 * kPageBytes});
    for (int page = 0; page < kPages; ++page) rank.use(page);
    rank.pager.end_pass();
    rank.pager.trim(/*evict_all=*/true);
    EXPECT_EQ(rank.pager.stats().prefetches, 0);
    rank.use(0);
    EXPECT_EQ(rank.pager.stats().prefetches, 2);
    EXPECT_EQ(rank.pager.stats().live_bytes, 3 * kPageBytes);
    for (int page = 1; page < kPages; ++page) EXPECT_TRUE(rank.use(page));
    EXPECT_EQ(rank.pager.stats().prefetches, kPages - 1);
    rank.pager.end_pass();
    communicator.barrier({"done"});
  });
}

// Catches an operator that is refused because its parameters alone exceed the limit.
TEST(Pager, OneOperatorMayNeedMoreThanTheLimit) {
  run(2, false, [](comm::Communicator& communicator) {
    Rank rank(communicator, {.max_live_bytes = kPageBytes});
    for (int page = 0; page < 3; ++page) rank.pager.touch(page, false, "op");
    for (int page = 0; page < 3; ++page) EXPECT_TRUE(rank.holds(page));
    for (int page = 0; page < 3; ++page) rank.pager.unpin(page);
    EXPECT_TRUE(rank.use(3));
    EXPECT_EQ(rank.pager.stats().live_bytes, kPageBytes);
    communicator.barrier({"done"});
  });
}

// Catches errors without a place: a gather that fails says for which operator, page and parameter.
TEST(Pager, AFailedGatherIsNamed) {
  auto communicators = comm::make_thread_communicators(2, milliseconds(100));
  for (auto& communicator : communicators) {
    communicator = comm::make_fault_communicator(
        std::move(communicator), [](auto, auto&) { return comm::Fault{}; }, true);
  }
  const auto outcomes = comm::run_threads(std::move(communicators), [](comm::Communicator& communicator) {
    Rank rank(communicator, {});
    if (communicator.rank() == 0) rank.use(4);
    std::this_thread::sleep_for(milliseconds(150));
  });
  EXPECT_TRUE(comm::contains(outcomes[0], "TimeoutError: op needs page 4 (p4)")) << outcomes[0];
  EXPECT_TRUE(comm::contains(outcomes[0], "rank 1")) << outcomes[0];
  EXPECT_EQ(outcomes[1], "");
}

// Catches a frame that an update drops while an operator of another thread reads it, and an operator that reads what is
// half updated.
TEST(Pager, UpdatesAndOperatorsOfAnotherThreadWaitForEachOther) {
  run(1, false, [](comm::Communicator& communicator) {
    Rank rank(communicator, {});
    std::atomic<bool> dropped{false};
    std::atomic<bool> used{false};
    rank.pager.touch(2, /*writes=*/false, "op");
    std::thread update([&] {
      std::optional<UpdateScope> scope(std::in_place, rank.pager);
      rank.pager.drop_stale({2});
      dropped = true;
      std::thread evaluation([&] { used = rank.use(2, 1); });
      std::this_thread::sleep_for(milliseconds(20));
      EXPECT_FALSE(used);
      rank.fill_shard(2, 1);
      rank.pager.publish(2);
      scope.reset();
      evaluation.join();
    });
    std::this_thread::sleep_for(milliseconds(20));
    EXPECT_FALSE(dropped);
    EXPECT_TRUE(rank.holds(2));
    rank.pager.unpin(2);
    update.join();
    EXPECT_TRUE(used) << "the operator ran before the update had ended, or never";
  });
}

// Catches an operator that waits for an update while the update waits for a page that the operator has pinned: with
// both it ends in a timeout.
TEST(Pager, AnOperatorWithTwoPagesFinishesBeforeAnUpdate) {
  run(1, false, [](comm::Communicator& communicator) {
    Rank rank(communicator, {});
    std::atomic<bool> announced{false};
    std::atomic<bool> running{false};
    rank.pager.touch(2, /*writes=*/false, "op");
    std::thread update([&] {
      announced = true;
      const UpdateScope scope(rank.pager);
      running = true;
    });
    while (!announced) std::this_thread::yield();
    std::this_thread::sleep_for(milliseconds(20));
    rank.pager.touch(3, /*writes=*/false, "op");
    EXPECT_FALSE(running) << "the update ran while an operator used two pages";
    rank.pager.unpin(3);
    rank.pager.unpin(2);
    update.join();
    EXPECT_TRUE(running);
  });
}

// Catches memory that a program has the address of, and that an update frees, gives to another page, or leaves at the
// values of before; and a page whose scope ends in the middle of an update.
TEST_P(PagerOnRanks, AScopeKeepsItsMemoryInAnUpdate) {
  const auto [world, two_sided] = GetParam();
  run(world, two_sided, [](comm::Communicator& communicator) {
    Rank rank(communicator, {.max_reuse_distance_bytes = kPageBytes});
    for (int page = 0; page < kPages; ++page) rank.use(page);
    rank.pager.end_pass();
    for (const int page : {1, 4}) rank.pager.touch_for_scope(page, "a scope");
    const std::byte* address = rank.pager.frame(1);
    const auto live_bytes = rank.pager.stats().live_bytes;
    for (int version = 1; version < 4; ++version) {
      const UpdateScope scope(rank.pager);
      communicator.barrier({"global check"});
      rank.pager.drop_stale({1, 4});
      EXPECT_EQ(rank.pager.frame(1), address);
      EXPECT_TRUE(rank.holds(1, version - 1)) << "nobody changes it before all ranks have published";
      for (const int page : {1, 4}) {
        rank.fill_shard(page, version);
        rank.pager.publish(page);
      }
      if (version == 3) rank.pager.unpin_of_scope(4);
      rank.pager.refresh_pinned();
      EXPECT_EQ(rank.pager.frame(1), address);
      EXPECT_TRUE(rank.holds(1, version));
    }
    EXPECT_TRUE(rank.use(4, 3));
    rank.pager.unpin_of_scope(1);
    EXPECT_LE(rank.pager.stats().live_bytes, live_bytes);
    communicator.barrier({"done"});
  });
}

// Catches a scope that keeps a page and makes the update of its own thread wait for ever.
TEST(Pager, AnUpdateDoesNotWaitForScopes) {
  run(1, false, [](comm::Communicator& communicator) {
    Rank rank(communicator, {});
    rank.pager.touch_for_scope(1, "a scope");
    {
      const UpdateScope scope(rank.pager);
      rank.pager.drop_stale({1});
      rank.fill_shard(1, 1);
      rank.pager.publish(1);
      rank.pager.refresh_pinned();
    }
    EXPECT_TRUE(rank.holds(1, 1));
    rank.pager.unpin_of_scope(1);
  });
}

}  // namespace
}  // namespace zeropage::paging
