// What the timeline is told of a communicator, and that nothing changes for those who use it.
#include "zeropage/comm/recording_communicator.h"

#include <gtest/gtest.h>

#include <mutex>
#include <vector>

#include "zeropage/comm/testing/communicator_conformance.h"
#include "zeropage/comm/testing/test_ranks.h"

namespace zeropage::comm {
namespace {

std::shared_ptr<Communicator> recorded(Communicator& communicator, std::shared_ptr<Timeline> timeline) {
  return record_transfers({&communicator, [](Communicator*) {}}, std::move(timeline));
}

// Catches a call that is passed on with other arguments.
TEST(RecordingCommunicator, ConformanceHolds) {
  const auto body = [](Communicator& communicator) {
    run_conformance(*recorded(communicator, std::make_shared<Timeline>(TimelineOptions{})));
  };
  for (const std::string& outcome : run_threads(3, kRankTimeout, body)) EXPECT_EQ(outcome, "");
}

// Catches transfers that are counted twice (polled and then waited for), not at all, or with the size of something
// else.
TEST(RecordingCommunicator, CountsEachTransferOnce) {
  const auto body = [](Communicator& communicator) {
    const auto timeline = std::make_shared<Timeline>(TimelineOptions{});
    const auto recording = recorded(communicator, timeline);
    std::vector<float> whole(6, 1.0f), shard(3);
    auto work =
        recording->reduce_scatter(whole.data(), shard.data(), 3, DType::kFloat32, DType::kFloat32, false, {"g", 1}, {});
    while (!work->poll()) {
    }
    work->wait();
    recording->all_gather(shard.data(), whole.data(), 12, {"p", 1})->wait();
    recording->barrier({"b", 0});
    all_gather_small(*recording, "12345", {"v", 0});
    const std::map<TransferSize, TransferTotal> found = timeline->transfers();
    std::map<TransferSize, std::int64_t> counts;
    for (const auto& [size, total] : found) counts[size] = total.whole.count;
    const std::map<TransferSize, std::int64_t> expected = {
        {{"reduce_scatter", 24}, 1}, {{"all_gather", 24}, 1}, {{"barrier", 0}, 1}, {{"exchange", 10}, 1}};
    if (counts != expected) throw Error("other transfers were counted:\n" + format_transfers(found));
    if (shard != std::vector<float>(3, 2.0f)) throw Error("the sum is wrong");
  };
  for (const std::string& outcome : run_threads(2, kRankTimeout, body)) EXPECT_EQ(outcome, "");
}

}  // namespace
}  // namespace zeropage::comm
