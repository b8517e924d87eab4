// Pages that are sent in 8 bits, on ranks as threads that read each other's memory or that call collectives.
#include <gtest/gtest.h>

#include <cstring>
#include <random>
#include <vector>

#include "zeropage/comm/testing/delayed_ranks.h"
#include "zeropage/comm/testing/test_ranks.h"
#include "zeropage/optim/convert.h"
#include "zeropage/paging/pager.h"

namespace zeropage::paging {
namespace {

constexpr int kCodedPages = 3;  // the last one is frozen
constexpr std::int64_t kNumel = 4000;
constexpr std::int64_t kElement = 2;

std::shared_ptr<const layout::Layout> coded_layout(int world) {
  std::vector<layout::ParameterSpec> specs(kCodedPages);
  for (int i = 0; i < kCodedPages; ++i) {
    specs[i].name.append("p").append(std::to_string(i));
    specs[i].numel = kNumel;
    specs[i].dtype = DType::kBFloat16;
    specs[i].element_bytes = kElement;
    specs[i].trainable = i + 1 < kCodedPages;
  }
  return std::make_shared<const layout::Layout>(
      specs, layout::LayoutOptions{.world_size = world, .page_numel = 1, .shard_alignment_numel = 16});
}

/// The shard of a rank, at some version.
std::vector<std::uint16_t> shard_of(int page, int rank, std::int64_t numel, int version) {
  std::mt19937 random(static_cast<unsigned>(100 * version + 10 * page + rank));
  std::normal_distribution<float> normal;
  std::vector<std::uint16_t> shard(static_cast<std::size_t>(numel));
  for (auto& value : shard) value = optim::bfloat16_from_float(normal(random));
  return shard;
}

class CodedRank {
 public:
  CodedRank(comm::Communicator& communicator, CodedPages coded)
      : layout_(coded_layout(communicator.size())),
        numel_(layout_->pages()[0].shard_numel),
        communicator_(communicator),
        pager(layout_, std::vector<bool>(kCodedPages, true),
              std::shared_ptr<comm::Communicator>(&communicator, [](auto*) {}), c10::Device(c10::kCPU), ledger,
              PagerOptions{.coded = coded}) {
    for (int page = 0; page < kCodedPages; ++page) fill(page, 0);
    communicator.barrier({"shards are filled"});
  }

  void fill(int page, int version) {
    const auto shard = shard_of(page, communicator_.rank(), numel_, version);
    std::memcpy(pager.shard(page), shard.data(), shard.size() * kElement);
  }

  /// What every rank's frame must hold.
  std::vector<std::uint16_t> expected(int page, bool rounded, int version = 0) const {
    std::vector<std::uint16_t> all;
    for (int rank = 0; rank < communicator_.size(); ++rank) {
      auto shard = shard_of(page, rank, numel_, version);
      // Behind the parameter's end the shards' values are never sent between ranks that share memory.
      if (rounded) {
        optim::round_to_blocks(optim::BlockCode::kInt8, DType::kBFloat16, shard.data(), shard.data(), numel_);
      }
      all.insert(all.end(), shard.begin(), shard.end());
    }
    all.resize(kNumel);
    return all;
  }

  /// Of the pinned page.
  std::vector<std::uint16_t> frame(int page) const {
    std::vector<std::uint16_t> values(kNumel);
    std::memcpy(values.data(), pager.frame(page), kNumel * kElement);
    return values;
  }

  std::vector<std::uint16_t> read(int page) {
    pager.touch(page, /*writes=*/false, "op");
    auto values = frame(page);
    pager.unpin(page);
    return values;
  }

  std::vector<std::uint16_t> own(int page) const {
    std::vector<std::uint16_t> values(static_cast<std::size_t>(numel_));
    std::memcpy(values.data(), pager.shard(page), values.size() * kElement);
    return values;
  }

  const std::shared_ptr<Ledger> ledger = std::make_shared<Ledger>();

 private:
  std::shared_ptr<const layout::Layout> layout_;
  std::int64_t numel_;
  comm::Communicator& communicator_;

 public:
  Pager pager;
};

void run_coded(int world, bool two_sided, const comm::RankBody& body) {
  for (const auto& outcome : comm::run_threads(world, std::chrono::milliseconds(20000), two_sided, body))
    EXPECT_EQ(outcome, "");
}

class CodedPager : public testing::TestWithParam<std::tuple<int, bool>> {};
INSTANTIATE_TEST_SUITE_P(Worlds, CodedPager, testing::Combine(testing::Values(2, 4), testing::Bool()));

// Catches frames that depend on the transport, or on whose shard is the rank's own; and shards that lose their exact
// values.
TEST_P(CodedPager, EveryRankSeesWhatEightBitsSay) {
  const auto [world, two_sided] = GetParam();
  run_coded(world, two_sided, [](comm::Communicator& communicator) {
    CodedRank rank(communicator, CodedPages::kAll);
    for (int page = 0; page < kCodedPages; ++page) {
      EXPECT_EQ(rank.read(page), rank.expected(page, /*rounded=*/true));
      EXPECT_NE(rank.read(page), rank.expected(page, /*rounded=*/false)) << "nothing was rounded";
    }
    rank.pager.end_pass();
    communicator.barrier({"global check"});
    rank.pager.drop_stale({1});
    rank.fill(1, 1);
    rank.pager.publish(1);
    EXPECT_EQ(rank.read(1), rank.expected(1, /*rounded=*/true, 1));
    EXPECT_EQ(rank.own(1), shard_of(1, communicator.rank(), static_cast<std::int64_t>(rank.own(1).size()), 1));
    communicator.barrier({"done"});
  });
}

// Catches a key that rounds pages of other kinds, and one rank that rounds its pages although it sends nothing.
TEST_P(CodedPager, OnlyFrozenPagesWhereOnlyThoseAreMeant) {
  const auto [world, two_sided] = GetParam();
  run_coded(world, two_sided, [](comm::Communicator& communicator) {
    CodedRank rank(communicator, CodedPages::kFrozen);
    for (int page = 0; page < kCodedPages; ++page) {
      EXPECT_EQ(rank.read(page), rank.expected(page, /*rounded=*/page == kCodedPages - 1));
    }
    communicator.barrier({"done"});
  });
  run_coded(1, two_sided, [](comm::Communicator& communicator) {
    CodedRank rank(communicator, CodedPages::kAll);
    EXPECT_EQ(rank.read(0), rank.expected(0, /*rounded=*/false));
  });
}

// Catches scopes that show rounded values, which a saved model would then have, and operators that read exact values
// after a scope.
TEST_P(CodedPager, AScopeSeesExactValuesAndLeavesNone) {
  const auto [world, two_sided] = GetParam();
  run_coded(world, two_sided, [](comm::Communicator& communicator) {
    CodedRank rank(communicator, CodedPages::kAll);
    rank.read(0);
    for (const int page : {0, 1}) {  // one is resident
      rank.pager.touch_for_scope(page, "a scope");
      EXPECT_EQ(rank.frame(page), rank.expected(page, /*rounded=*/false));
      EXPECT_EQ(rank.read(page), rank.expected(page, /*rounded=*/false));
      rank.pager.end_pass();
      communicator.barrier({"global check"});
      rank.pager.drop_stale({page});
      rank.fill(page, 1);
      rank.pager.publish(page);
      rank.pager.refresh_pinned();
      EXPECT_EQ(rank.frame(page), rank.expected(page, /*rounded=*/false, 1));
      rank.pager.unpin_of_scope(page);
      EXPECT_EQ(rank.read(page), rank.expected(page, /*rounded=*/true, 1));
    }
    communicator.barrier({"done"});
  });
}

// Catches rounded values that a write stores in the shard: a weight that is scaled in every step would lose precision.
TEST_P(CodedPager, AWriteStartsFromExactValues) {
  const auto [world, two_sided] = GetParam();
  run_coded(world, two_sided, [](comm::Communicator& communicator) {
    CodedRank rank(communicator, CodedPages::kAll);
    rank.read(0);
    const auto before = rank.own(0);
    rank.pager.touch(0, /*writes=*/true, "op");
    EXPECT_EQ(rank.frame(0), rank.expected(0, /*rounded=*/false));
    const auto numel = static_cast<std::int64_t>(before.size());
    for (int r = 0; r < communicator.size(); ++r) {
      reinterpret_cast<std::uint16_t*>(rank.pager.frame(0))[r * numel + 3] = optim::bfloat16_from_float(9.0F);
    }
    rank.pager.unpin(0);
    communicator.barrier({"global check"});
    rank.pager.write_back_dirty();
    auto expected = before;
    expected[3] = optim::bfloat16_from_float(9.0F);
    EXPECT_EQ(rank.own(0), expected);
    optim::round_to_blocks(optim::BlockCode::kInt8, DType::kBFloat16, expected.data(), expected.data(), numel);
    EXPECT_EQ(rank.read(0)[static_cast<std::size_t>(communicator.rank() * numel) + 3], expected[3]);
    communicator.barrier({"done"});
  });
}

// Catches an operator that reads one parameter of a page and writes another one: what it did not write must stay exact.
TEST_P(CodedPager, AWriteBesideAReaderKeepsWhatItDidNotWrite) {
  const auto [world, two_sided] = GetParam();
  run_coded(world, two_sided, [](comm::Communicator& communicator) {
    CodedRank rank(communicator, CodedPages::kAll);
    auto expected = rank.own(0);
    rank.pager.touch(0, /*writes=*/false, "op");
    rank.pager.touch(0, /*writes=*/true, "op");
    const auto numel = static_cast<std::int64_t>(expected.size());
    for (int r = 0; r < communicator.size(); ++r) {
      reinterpret_cast<std::uint16_t*>(rank.pager.frame(0))[r * numel + 5] = optim::bfloat16_from_float(-7.0F);
    }
    rank.pager.unpin(0);
    rank.pager.unpin(0);
    communicator.barrier({"global check"});
    rank.pager.write_back_dirty();
    expected[5] = optim::bfloat16_from_float(-7.0F);
    EXPECT_EQ(rank.own(0), expected);
    communicator.barrier({"done"});
  });
}

// Catches codes that are sent in addition to the values instead of in their place.
TEST(CodedPagerBytes, AreHalfOfSixteenBits) {
  run_coded(2, /*two_sided=*/true, [](comm::Communicator& communicator) {
    CodedRank rank(communicator, CodedPages::kAll);
    const auto before = communicator.bytes_moved();
    rank.read(0);
    const auto moved = communicator.bytes_moved() - before;
    EXPECT_GT(moved, 0);
    EXPECT_LE(moved, 0.52 * static_cast<double>(kElement * static_cast<std::int64_t>(rank.own(0).size())));
    communicator.barrier({"done"});
  });
}

}  // namespace
}  // namespace zeropage::paging
