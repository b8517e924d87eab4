// Ranks in groups whose buffers are on a device: threads, with a part of the host's memory as the device's.
#include "zeropage/comm/hosts/group_device.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "zeropage/base/error.h"
#include "zeropage/comm/hosts/group_communicator.h"
#include "zeropage/comm/testing/test_ranks.h"
#include "zeropage/comm/wrapped_communicator.h"

namespace zeropage::comm {
namespace {

constexpr int kGroups = 2;
constexpr int kCount = 2;
constexpr std::int64_t kDeviceShard = 100;  // of a shard

/// What a rank has done with the streams of its device, in order.
struct StreamLog {
  std::vector<std::string> events;
  int inside = 0;  ///< how many scopes of enter() there are now

  void note(const std::string& event) { events.push_back(inside > 0 ? event + " on the stream" : event); }
  std::vector<std::string> take() { return std::exchange(events, {}); }
};

class LoggedStream final : public OperationStream {
 public:
  explicit LoggedStream(std::shared_ptr<StreamLog> log) : log_(std::move(log)) { log_->note("begin"); }
  std::shared_ptr<void> enter() override {
    ++log_->inside;
    return {log_.get(), [](StreamLog* log) { --log->inside; }};
  }
  void order_after(Work& work) override { work.wait(); }
  void end() override {
    log_->note("end");
    ended_ = true;
  }
  bool is_over() const override { return ended_; }
  void order_current() override { log_->note("order"); }

 private:
  const std::shared_ptr<StreamLog> log_;
  bool ended_ = false;
};

struct LoggedDevice final : public GroupDevice {
  LoggedDevice(std::shared_ptr<StreamLog> log, bool ordered) : log(std::move(log)), ordered(ordered) {}
  bool holds(const void* buffer) const override {
    return buffer >= memory.data() && buffer < memory.data() + memory.size();
  }
  bool orders_streams() const override { return ordered; }
  std::shared_ptr<const SumMemory> sums() const override { return host_sums(); }
  std::shared_ptr<OperationStream> begin() override { return std::make_shared<LoggedStream>(log); }

  std::vector<float> memory = std::vector<float>(1000);
  const std::shared_ptr<StreamLog> log;
  const bool ordered;
};

/// Notes the start of each collective of one side.
class LoggedSide final : public WrappedCommunicator {
 public:
  LoggedSide(std::shared_ptr<Communicator> inner, std::shared_ptr<StreamLog> log)
      : WrappedCommunicator(std::move(inner)), log_(std::move(log)) {}
  WorkPtr all_gather(const void* shard, void* whole, std::int64_t shard_bytes, Tag tag) override {
    log_->note("all_gather");
    return inner_->all_gather(shard, whole, shard_bytes, tag);
  }
  WorkPtr reduce_scatter(const void* whole, void* out, std::int64_t shard_numel, DType in_dtype, DType out_dtype,
                         bool accumulate, Tag tag, OnReduced on_reduced) override {
    log_->note("reduce_scatter");
    return inner_->reduce_scatter(whole, out, shard_numel, in_dtype, out_dtype, accumulate, tag, std::move(on_reduced));
  }
  WorkPtr all_reduce(void* data, std::int64_t numel, DType dtype, Tag tag, OnReduced on_reduced) override {
    log_->note("all_reduce");
    return inner_->all_reduce(data, numel, dtype, tag, std::move(on_reduced));
  }
  WorkPtr broadcast(void* data, std::int64_t bytes, int root, Tag tag) override {
    log_->note("broadcast");
    return inner_->broadcast(data, bytes, root, tag);
  }
  WorkPtr all_to_all(const void* sent, void* received, const PartBytes& part_bytes, Tag tag) override {
    log_->note("all_to_all");
    return inner_->all_to_all(sent, received, part_bytes, tag);
  }
  void barrier(Tag tag) override { inner_->barrier(tag); }

 private:
  const std::shared_ptr<StreamLog> log_;
};

using DeviceBody = std::function<void(Communicator& group, LoggedDevice& device)>;

/// Runs `body` on all ranks, which must end without an error.
void on_devices(const DeviceBody& body, bool ordered = true, bool deterministic_reduction = true) {
  std::vector<std::vector<std::unique_ptr<Communicator>>> columns;
  for (int place = 0; place < kCount; ++place) columns.push_back(make_thread_communicators(kGroups, kRankTimeout));
  std::vector<std::unique_ptr<Communicator>> ranks;
  std::vector<std::shared_ptr<LoggedDevice>> devices;
  for (int group = 0; group < kGroups; ++group) {
    auto rows = make_thread_communicators(kCount, kRankTimeout);
    for (int place = 0; place < kCount; ++place) {
      auto log = std::make_shared<StreamLog>();
      devices.push_back(std::make_shared<LoggedDevice>(log, ordered));
      const auto logged = [&](std::unique_ptr<Communicator> side) {
        return std::make_shared<LoggedSide>(std::move(side), log);
      };
      ranks.push_back(make_group_communicator(
          logged(std::move(rows[static_cast<std::size_t>(place)])),
          logged(std::move(columns[static_cast<std::size_t>(place)][static_cast<std::size_t>(group)])),
          deterministic_reduction, nullptr, devices.back()));
    }
  }
  const auto outcomes = run_threads(std::move(ranks), [&](Communicator& group) {
    body(group, *devices[static_cast<std::size_t>(group.job().rank())]);
  });
  for (const std::string& outcome : outcomes) EXPECT_EQ(outcome, "");
}

using Events = std::vector<std::string>;

/// Rank r's terms are r + 1.
float* terms_on(LoggedDevice& device, int rank) {
  std::fill_n(device.memory.data(), kDeviceShard * kCount, static_cast<float>(rank + 1));
  return device.memory.data();
}

constexpr float kSum = 10;  // 1 + 2 + 3 + 4

// Catches stages that wait for a poll of this rank, sums that are computed on another stream, and a caller that is not
// ordered after them.
TEST(GroupDevice, AllStagesStartWithTheReduction) {
  for (const bool deterministic : {true, false}) {
    const DeviceBody body = [&](Communicator& group, LoggedDevice& device) {
      float* const whole = terms_on(device, group.job().rank());
      float* const out = whole + kDeviceShard * kCount;
      auto work = group.reduce_scatter(whole, out, kDeviceShard, DType::kFloat32, DType::kFloat32, false, {"sum"}, {});
      Events expected = {"begin", "all_to_all on the stream", "all_to_all on the stream", "broadcast on the stream",
                         "end on the stream"};
      if (!deterministic) {
        expected = {"begin", "reduce_scatter on the stream", "all_reduce on the stream", "end on the stream"};
      }
      EXPECT_EQ(device.log->take(), expected);
      work->wait();
      EXPECT_EQ(device.log->take(), Events{"order"});
      EXPECT_EQ(std::vector<float>(out, out + kDeviceShard), std::vector<float>(kDeviceShard, kSum));
    };
    on_devices(body, /*ordered=*/true, deterministic);
  }
}

// Catches a work that says it is complete, although the caller's stream does not come after it.
TEST(GroupDevice, APollOrdersTheStream) {
  for (const bool ordered : {true, false}) {
    const DeviceBody body = [](Communicator& group, LoggedDevice& device) {
      float* const data = terms_on(device, group.job().rank());
      auto work = group.all_reduce(data, kDeviceShard * kCount, DType::kFloat32, {"sum"}, {});
      while (!work->poll()) std::this_thread::yield();
      const Events events = device.log->take();
      EXPECT_EQ(events.back(), "order");
      EXPECT_EQ(std::vector<float>(data, data + kDeviceShard * kCount),
                std::vector<float>(kDeviceShard * kCount, kSum));
    };
    on_devices(body, ordered);
  }
}

// Catches gathers that need a stream of their own, and events, before every layer.
TEST(GroupDevice, GathersAreThoseOfTheGroup) {
  on_devices([](Communicator& group, LoggedDevice& device) {
    float* const whole = device.memory.data();
    whole[group.rank()] = static_cast<float>(group.job().rank());
    group.all_gather(whole + group.rank(), whole, sizeof(float), {"gather"})->wait();
    EXPECT_EQ(device.log->take(), Events{"all_gather"});
    EXPECT_EQ(whole[1], static_cast<float>(group.group() * kCount + 1));
  });
}

// Catches stages of a collective in host memory that start among those of a reduction on the device, at a place that
// depends on polls; and values of host memory that go through the device's streams.
TEST(GroupDevice, CollectivesInHostMemoryEndFirst) {
  on_devices([](Communicator& group, LoggedDevice& device) {
    std::vector<float> whole(static_cast<std::size_t>(kDeviceShard) * kCount,
                             static_cast<float>(group.job().rank() + 1));
    std::vector<float> out(static_cast<std::size_t>(kDeviceShard));
    const auto sum = [&](const float* from, float* to) {
      return group.reduce_scatter(from, to, kDeviceShard, DType::kFloat32, DType::kFloat32, false, {"sum"}, {});
    };
    auto on_host = sum(whole.data(), out.data());
    float* const there = terms_on(device, group.job().rank());
    auto on_device = sum(there, there + kDeviceShard * kCount);
    const Events all = {"all_to_all",
                        "all_to_all",
                        "broadcast",
                        "begin",
                        "all_to_all on the stream",
                        "all_to_all on the stream",
                        "broadcast on the stream",
                        "end on the stream"};
    EXPECT_EQ(device.log->take(), all);
    on_host->wait();
    on_device->wait();
    EXPECT_EQ(out, std::vector<float>(kDeviceShard, kSum));
    EXPECT_EQ(std::vector<float>(there + kDeviceShard * kCount, there + kDeviceShard * (kCount + 1)), out);
  });
}

// Catches values of one rank that stay in its group, and host code that would read a device's memory.
TEST(GroupDevice, AllRanksOfTheJobHaveBroadcast) {
  on_devices([](Communicator& group, LoggedDevice& device) {
    device.memory[0] = static_cast<float>(group.job().rank());
    group.job().broadcast(device.memory.data(), sizeof(float), 3, {"values"})->wait();
    EXPECT_EQ(device.memory[0], 3.0F);
    EXPECT_THROW(group.job().all_gather(device.memory.data(), device.memory.data(), 4, {"gather"}), UsageError);
  });
}

}  // namespace
}  // namespace zeropage::comm
