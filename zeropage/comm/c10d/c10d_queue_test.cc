// The queue of collectives over works that the test completes or fails itself, without a backend.
#include "zeropage/comm/c10d/c10d_queue.h"

#include <gtest/gtest.h>

#include <stdexcept>
#include <utility>

#include "zeropage/base/error.h"
#include "zeropage/comm/testing/test_ranks.h"

// torch's headers last, because they define macros.
#include <torch/csrc/distributed/c10d/HashStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>
#include <torch/csrc/distributed/c10d/Work.hpp>

namespace zeropage::comm {
namespace {

using std::chrono::milliseconds;

class ManualWork final : public c10d::Work {
 public:
  void complete() { finish(); }
  void fail(const std::string& message) { finish(std::make_exception_ptr(std::runtime_error(message))); }
};

/// The queue of one of two ranks, and the events of its stages, in order.
struct Rank {
  explicit Rank(int rank, const c10::intrusive_ptr<c10d::Store>& store, milliseconds timeout = milliseconds(20000))
      : queue(make_group(rank, store), make_group(rank, store), timeout, /*aborts=*/nullptr) {}

  static ProcessGroupPtr make_group(int rank, const c10::intrusive_ptr<c10d::Store>& store) {
    return c10::make_intrusive<c10d::ProcessGroup>(store, rank, 2);
  }

  /// A stage that records "+name" when it starts and "-name" when its result is processed.
  C10dStage stage(const std::string& name, bool on_stream = false) {
    auto work = c10::make_intrusive<ManualWork>();
    works.emplace(name, work);
    return {[this, name, work] {
              events.push_back("+" + name);
              return work;
            },
            [this, name] { events.push_back("-" + name); }, on_stream};
  }

  std::shared_ptr<C10dOperation> start(std::vector<C10dStage> stages) {
    C10dOperation operation;
    operation.stages = std::move(stages);
    return queue.start(std::move(operation), /*check=*/false);
  }

  std::vector<std::string> events;
  std::map<std::string, c10::intrusive_ptr<ManualWork>> works;
  C10dQueue queue;
};

using Events = std::vector<std::string>;

// Catches a collective that is submitted before an earlier one's last stage, so that process groups match calls of
// different collectives; one that waits for earlier ones to be complete; and a stage that begins before the one before
// it is complete.
TEST(C10dQueue, HandsStagesOverInOrder) {
  Rank rank(0, c10::make_intrusive<c10d::HashStore>());
  const auto a = rank.start({rank.stage("a1"), rank.stage("a2")});
  const auto b = rank.start({rank.stage("b")});
  EXPECT_EQ(rank.events, Events{"+a1"});
  EXPECT_FALSE(rank.queue.poll(*b));
  EXPECT_EQ(rank.events, Events{"+a1"});
  rank.works["a1"]->complete();
  EXPECT_FALSE(rank.queue.poll(*b));
  EXPECT_EQ(rank.events, (Events{"+a1", "-a1", "+a2", "+b"}));
  rank.works["b"]->complete();
  EXPECT_TRUE(rank.queue.poll(*b));
  EXPECT_FALSE(rank.queue.poll(*a)) << "its second stage is still running";
  rank.works["a2"]->complete();
  rank.queue.wait(*a);
  EXPECT_EQ(rank.events, (Events{"+a1", "-a1", "+a2", "+b", "-b", "-a2"}));
}

// Catches a host that waits for a stage which only has to be ordered on the device's stream.
TEST(C10dQueue, StagesOnAStreamFollowWithoutWaiting) {
  Rank rank(0, c10::make_intrusive<c10d::HashStore>());
  auto first = rank.stage("first", /*on_stream=*/true);
  first.start = [&rank, start = first.start] {
    rank.works["first"]->complete();  // the effect of its wait() in the order of a stream
    return start();
  };
  const auto operation = rank.start({first, rank.stage("second", /*on_stream=*/true)});
  EXPECT_EQ(rank.events, (Events{"+first", "-first", "+second"}));
  EXPECT_FALSE(rank.queue.poll(*operation));
}

// Catches a failure that does not reach peers, one whose first reason is replaced by a later one, and a queue that
// continues after a failure.
TEST(C10dQueue, TheFirstErrorEndsAllRanks) {
  const auto store = c10::make_intrusive<c10d::HashStore>();
  Rank failing(0, store);
  Rank peer(1, store);
  const auto lost = failing.start({failing.stage("lost")});
  failing.works["lost"]->fail("[gloo.cc:1] Connection closed by peer");
  EXPECT_THROW(failing.queue.wait(*lost), PeerError);
  failing.queue.abort("a second reason");
  const auto told = outcome_of([&] { peer.queue.throw_if_aborted(); });
  EXPECT_TRUE(contains(told, "PeerError: rank 0 aborted: rank 0 lost a peer")) << told;
  EXPECT_TRUE(contains(told, "Connection closed by peer")) << told;
  EXPECT_FALSE(contains(told, "gloo.cc")) << told;
  EXPECT_FALSE(contains(told, "second reason")) << told;
  EXPECT_THROW(failing.start({failing.stage("late")}), PeerError);
  EXPECT_THROW(peer.start({peer.stage("late")}), PeerError);
}

// Catches a backend's timeout that is reported as a lost peer, and a timeout without the missing rank.
TEST(C10dQueue, TimeoutsNameTheMissingRank) {
  Rank rank(0, c10::make_intrusive<c10d::HashStore>());
  const auto late = rank.start({rank.stage("late")});
  rank.works["late"]->fail("[gloo.cc:1] Timed out waiting 20000ms for recv operation to complete");
  const auto by_backend = outcome_of([&] { rank.queue.wait(*late); });
  EXPECT_TRUE(contains(by_backend, "TimeoutError: rank 0 timed out after 20000 ms")) << by_backend;
  EXPECT_TRUE(contains(by_backend, "missing: rank 1, which has reported no collective")) << by_backend;

  Rank other(0, c10::make_intrusive<c10d::HashStore>(), milliseconds(20));
  const auto here = outcome_of([&] { other.queue.wait_until([] { return false; }, "a peer's memory"); });
  EXPECT_TRUE(contains(here, "TimeoutError: rank 0 waited 20 ms for a peer's memory")) << here;
}

}  // namespace
}  // namespace zeropage::comm
