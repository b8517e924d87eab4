// The memory of frames and shards of gradients, and its entries in the ledger.
#include <gtest/gtest.h>

#include "zeropage/comm/testing/test_ranks.h"
#include "zeropage/reduce/gradient_frames.h"
#include "zeropage/reduce/gradient_shards.h"

namespace zeropage::reduce {
namespace {

const c10::Device kCpu = c10::kCPU;

/// Four pages. Each of the two ranks has 2048 elements of each page. The second page is fp32, the other pages are bf16.
std::shared_ptr<const layout::Layout> memory_layout() {
  std::vector<layout::ParameterSpec> specs(4);
  for (auto& spec : specs) spec = {.name = "p", .numel = 4096, .dtype = DType::kBFloat16, .element_bytes = 2};
  specs[1].dtype = DType::kFloat32;
  specs[1].element_bytes = 4;
  return std::make_shared<const layout::Layout>(specs, layout::LayoutOptions{.world_size = 2, .page_numel = 4096});
}

std::vector<std::string> run_ranks(const comm::RankBody& body) {
  return comm::run_threads(2, comm::kRankTimeout, body);
}

ReducePolicy bf16_policy(bool sharded) {
  ReducePolicy policy;
  policy.sharded = sharded;
  policy.accumulation_dtype = policy.frame_dtype = DType::kBFloat16;
  policy.offloaded.assign(4, false);
  return policy;
}

// Catches frames of two pages that overlap (a frame of the wrong type's size), a frame for a page that is not trained,
// memory that is not counted, and frames that are not there again after they were freed.
TEST(GradientFrames, AreThePagesOwn) {
  const auto body = [](comm::Communicator& communicator) {
    const auto ledger = std::make_shared<Ledger>();
    const auto policy = bf16_policy(false);
    GradientFrames frames(memory_layout(), {2, 1}, communicator, kCpu, ledger, policy);
    EXPECT_EQ(frames.home(0), nullptr);
    EXPECT_EQ(frames.home(1) - frames.home(2), 4096 * 2);
    EXPECT_EQ(ledger->current_bytes(MemoryKind::kGradients), 4096 * 2 + 4096 * 4);
    frames.add(3);
    EXPECT_NE(frames.home(3), nullptr);
    EXPECT_EQ(ledger->current_bytes(MemoryKind::kGradients), 2 * 4096 * 2 + 4096 * 4);
    frames.free_homes();
    EXPECT_EQ(ledger->current_bytes(MemoryKind::kGradients), 0);
    frames.allocate_homes({2, 1, 3});
    EXPECT_EQ(frames.home(3) - frames.home(2), 4096 * 2 + 4096 * 4);
    communicator.barrier({"done"});
  };
  for (const auto& outcome : run_ranks(body)) EXPECT_EQ(outcome, "");
}

// Catches a sharded page that gets a whole frame permanently, and a borrowed frame that is not reused.
TEST(GradientFrames, AreBorrowedBySomePages) {
  const auto body = [](comm::Communicator& communicator) {
    const auto ledger = std::make_shared<Ledger>();
    const auto policy = bf16_policy(true);
    GradientFrames frames(memory_layout(), {2, 1, 0}, communicator, kCpu, ledger, policy);
    for (const int page : {0, 1, 2}) EXPECT_EQ(frames.home(page), nullptr);
    std::byte* first = frames.acquire(0);
    std::byte* second = frames.acquire(2);
    EXPECT_NE(first, second);
    frames.release(first);
    EXPECT_EQ(frames.acquire(0), first);
    communicator.barrier({"done"});
  };
  for (const auto& outcome : run_ranks(body)) EXPECT_EQ(outcome, "");
}

// Catches shards that overlap, one of an offloaded page among those of the device, and shards that are reported as
// readable by peers though every rank has them elsewhere.
TEST(GradientShards, AreInTwoBlocks) {
  const auto body = [](comm::Communicator& communicator) {
    const auto ledger = std::make_shared<Ledger>();
    auto policy = bf16_policy(true);
    policy.offloaded[1] = true;
    policy.host = memory::MemoryPlace(kCpu, Tier::kHost);
    GradientShards shards(memory_layout(), communicator, kCpu, ledger, policy);
    const std::vector<int> pages = {2, 1, 0};
    shards.allocate(pages, /*offloaded=*/false);
    shards.allocate(pages, /*offloaded=*/true);
    EXPECT_EQ(shards.data(0) - shards.data(2), 2048 * 2);
    EXPECT_EQ(shards.data(3), nullptr);
    EXPECT_EQ(ledger->current_bytes(MemoryKind::kGradients, Tier::kDevice), 2 * 2048 * 2);
    EXPECT_EQ(ledger->current_bytes(MemoryKind::kGradients, Tier::kHost), 2048 * 2);
    EXPECT_TRUE(shards.is_shared(1));
    shards.add(3);
    EXPECT_NE(shards.data(3), nullptr);
    EXPECT_FALSE(shards.is_shared(3));
    shards.free_on_device();
    EXPECT_EQ(ledger->current_bytes(MemoryKind::kGradients, Tier::kDevice), 0);
    EXPECT_EQ(ledger->current_bytes(MemoryKind::kGradients, Tier::kHost), 2048 * 2);
    communicator.barrier({"done"});
  };
  for (const auto& outcome : run_ranks(body)) EXPECT_EQ(outcome, "");
}

// Catches memory for the shards of a page whose gradients stay in autograd's tensors.
TEST(GradientShards, AreNotMadeForKeptGradients) {
  const auto body = [](comm::Communicator& communicator) {
    const auto ledger = std::make_shared<Ledger>();
    auto policy = bf16_policy(true);
    policy.keep = true;
    policy.offloaded[2] = true;
    GradientShards shards(memory_layout(), communicator, kCpu, ledger, policy);
    for (const bool offloaded : {false, true}) shards.allocate({2, 1, 0}, offloaded);
    EXPECT_EQ(shards.data(0), nullptr);
    EXPECT_NE(shards.data(2), nullptr) << "an offloaded page does not keep";
    communicator.barrier({"done"});
  };
  for (const auto& outcome : run_ranks(body)) EXPECT_EQ(outcome, "");
}

}  // namespace
}  // namespace zeropage::reduce
