// Squares of the pieces that a writer reports, against one pass over the shard.
#include "zeropage/reduce/norm_accumulator.h"

#include <gtest/gtest.h>

#include "zeropage/comm/testing/test_ranks.h"
#include "zeropage/reduce/pieces.h"

namespace zeropage::reduce {
namespace {

/// One page of three parameters with gaps between them, and this rank's shard of it, whose values count up.
struct Page {
  explicit Page(comm::Communicator& communicator, bool enabled = true) : norms(layout, communicator, device, enabled) {
    norms.add_page(0);
    for (std::size_t i = 0; i < shard.size(); ++i) shard[i] = static_cast<float>(i + 1);
  }

  static std::shared_ptr<const layout::Layout> make_layout() {
    std::vector<layout::ParameterSpec> specs(3);
    specs[0] = {.name = "a", .numel = 50001};
    specs[1] = {.name = "b", .numel = 90003};
    specs[2] = {.name = "c", .numel = 2000};
    return std::make_shared<const layout::Layout>(specs, layout::LayoutOptions{.world_size = 2});
  }

  const std::byte* data() const { return reinterpret_cast<const std::byte*>(shard.data()); }

  void write(const comm::OnReduced& on_reduced, std::int64_t begin, std::int64_t end) const {
    for (std::int64_t at = begin; at < end; at += optim::SquareSum::kBlockNumel) {
      on_reduced(at, std::min(optim::SquareSum::kBlockNumel, end - at));
    }
  }

  std::vector<double> sums() {
    return norms.sums(0, [this] {
      ++reads;
      return norms.pieces(0, data(), DType::kFloat32);
    });
  }

  /// Of each segment, in one pass.
  std::vector<double> expected(int rank) const {
    std::vector<double> sums;
    const std::int64_t first = rank * layout->pages()[0].shard_numel;
    for (const auto& segment : layout->shard_segments(0, rank)) {
      sums.push_back(optim::sum_of_squares(shard.data() + segment.page_offset - first, DType::kFloat32, segment.numel));
    }
    return sums;
  }

  std::shared_ptr<const layout::Layout> layout = make_layout();
  c10::Device device{c10::kCPU};
  NormAccumulator norms;
  std::vector<float> shard = std::vector<float>(static_cast<std::size_t>(layout->pages()[0].shard_numel));
  int reads = 0;
};

// Catches squares of a neighbour's elements or of gaps, a shard that is read again though every element was reported,
// and squares of an earlier write that stay when the sum is written again.
TEST(NormAccumulator, SumsWhatWritersTellOf) {
  const auto body = [](comm::Communicator& communicator) {
    Page page(communicator);
    const auto numel = static_cast<std::int64_t>(page.shard.size());
    for (int time = 0; time < 2; ++time) {
      page.write(page.norms.watch(0, page.data(), DType::kFloat32), 0, numel);
      EXPECT_EQ(page.sums(), page.expected(communicator.rank()));
      page.shard[7] = 1000.0F;
    }
    EXPECT_EQ(page.reads, 0);
    communicator.barrier({"done"});
  };
  for (const auto& outcome : comm::run_threads(2, comm::kRankTimeout, body)) EXPECT_EQ(outcome, "");
}

// Catches a norm without the elements of a writer that reported only a part, or nothing.
TEST(NormAccumulator, ReadsAgainWhatNobodyToldOf) {
  const auto body = [](comm::Communicator& communicator) {
    Page page(communicator);
    page.write(page.norms.watch(0, page.data(), DType::kFloat32), 0, static_cast<std::int64_t>(page.shard.size()) / 2);
    EXPECT_EQ(page.sums(), page.expected(communicator.rank()));
    page.norms.forget(0);
    EXPECT_EQ(page.sums(), page.expected(communicator.rank()));
    EXPECT_EQ(page.reads, 2);
    communicator.barrier({"done"});
  };
  for (const auto& outcome : comm::run_threads(2, comm::kRankTimeout, body)) EXPECT_EQ(outcome, "");
}

// Catches squares that are summed though they are not needed.
TEST(NormAccumulator, SumsNothingWhenNobodyAsks) {
  const auto body = [](comm::Communicator& communicator) {
    Page page(communicator, /*enabled=*/false);
    EXPECT_FALSE(page.norms.watch(0, page.data(), DType::kFloat32));
    EXPECT_FALSE(page.norms.watch_parameter(0, page.data(), DType::kFloat32));
    EXPECT_TRUE(page.sums().empty());
    EXPECT_EQ(page.reads, 0);
  };
  for (const auto& outcome : comm::run_threads(1, comm::kRankTimeout, body)) EXPECT_EQ(outcome, "");
}

}  // namespace
}  // namespace zeropage::reduce
