#include "zeropage/comm/testing/fault_communicator.h"

#include <random>
#include <string>
#include <thread>
#include <utility>

#include "zeropage/base/blocking.h"
#include "zeropage/comm/wrapped_communicator.h"

namespace zeropage::comm {
namespace {

using Clock = std::chrono::steady_clock;

void sleep_until(Clock::time_point time) {
  if (time <= Clock::now()) return;
  const auto blocking = enter_blocking();
  std::this_thread::sleep_until(time);
}

class SlowWork final : public Work {
 public:
  SlowWork(WorkPtr inner, Clock::time_point earliest) : inner_(std::move(inner)), earliest_(earliest) {}
  bool poll() override { return inner_->poll() && Clock::now() >= earliest_; }
  void wait() override {
    inner_->wait();
    sleep_until(earliest_);
  }

 private:
  WorkPtr inner_;
  Clock::time_point earliest_;
};

class DroppedWork final : public Work {
 public:
  DroppedWork(Communicator& communicator, const Tag& tag) : communicator_(communicator), what_(tag.what) {}
  bool poll() override { return false; }
  void wait() override {
    communicator_.wait_until([] { return false; }, -1, "the dropped '" + what_ + "'");
  }

 private:
  Communicator& communicator_;
  std::string what_;
};

class FaultCommunicator final : public WrappedCommunicator {
 public:
  FaultCommunicator(std::unique_ptr<Communicator> inner, FaultRule rule, bool two_sided)
      : WrappedCommunicator(std::move(inner)), rule_(std::move(rule)), two_sided_(two_sided) {}

  bool one_sided() const override { return !two_sided_ && inner_->one_sided(); }
  WorkPtr all_gather(const void* shard, void* whole, std::int64_t shard_bytes, Tag tag) override {
    return start(tag, [&] { return inner_->all_gather(shard, whole, shard_bytes, tag); });
  }
  WorkPtr all_gather_nearby(const void* shard, void* whole, std::int64_t shard_bytes, Tag tag) override {
    return start(tag, [&] { return inner_->all_gather_nearby(shard, whole, shard_bytes, tag); });
  }
  WorkPtr all_to_all(const void* sent, void* received, const PartBytes& part_bytes, Tag tag) override {
    return start(tag, [&] { return inner_->all_to_all(sent, received, part_bytes, tag); });
  }
  WorkPtr reduce_scatter(const void* whole, void* out, std::int64_t shard_numel, DType in_dtype, DType out_dtype,
                         bool accumulate, Tag tag, OnReduced on_reduced) override {
    return start(tag, [&] {
      return inner_->reduce_scatter(whole, out, shard_numel, in_dtype, out_dtype, accumulate, tag,
                                    std::move(on_reduced));
    });
  }
  WorkPtr reduce_scatter_in_codes(const void* whole, void* out, std::int64_t shard_numel, DType in_dtype,
                                  DType out_dtype, bool accumulate, Tag tag, OnReduced on_reduced,
                                  const SumCodec& codec) override {
    return start(tag, [&] {
      return inner_->reduce_scatter_in_codes(whole, out, shard_numel, in_dtype, out_dtype, accumulate, tag,
                                             std::move(on_reduced), codec);
    });
  }
  WorkPtr all_reduce(void* data, std::int64_t numel, DType dtype, Tag tag, OnReduced on_reduced) override {
    return start(tag, [&] { return inner_->all_reduce(data, numel, dtype, tag, std::move(on_reduced)); });
  }
  WorkPtr broadcast(void* data, std::int64_t bytes, int root, Tag tag) override {
    return start(tag, [&] { return inner_->broadcast(data, bytes, root, tag); });
  }
  void barrier(Tag tag) override {
    const Fault fault = next_fault(tag);
    if (fault.drop) return DroppedWork(*inner_, tag).wait();
    inner_->barrier(tag);
    sleep_until(Clock::now() + fault.delay_inside);
  }

 protected:
  std::string gather_host_bytes(std::string_view mine, Tag tag) override {
    const Fault fault = next_fault(tag);
    if (fault.drop) DroppedWork(*inner_, tag).wait();
    std::string all = all_gather_small(*inner_, mine, tag);
    sleep_until(Clock::now() + fault.delay_inside);
    return all;
  }

 private:
  Fault next_fault(const Tag& tag) {
    const Fault fault = rule_(next_op_++, tag);
    if (!fault.abort.empty()) inner_->abort(fault.abort);
    sleep_until(Clock::now() + fault.delay_before);
    return fault;
  }

  template <typename Start>
  WorkPtr start(const Tag& tag, const Start& start_inner) {
    const Fault fault = next_fault(tag);
    if (fault.drop) return std::make_unique<DroppedWork>(*inner_, tag);
    return std::make_unique<SlowWork>(start_inner(), Clock::now() + fault.delay_inside);
  }

  FaultRule rule_;
  bool two_sided_;
  std::int64_t next_op_ = 0;
};

}  // namespace

FaultRule random_delays(std::uint64_t seed, std::chrono::microseconds max) {
  return [random = std::mt19937_64(seed), max](std::int64_t, const Tag&) mutable {
    std::uniform_int_distribution<std::int64_t> delay_us(0, max.count());
    Fault fault;
    fault.delay_before = std::chrono::microseconds(delay_us(random));
    fault.delay_inside = std::chrono::microseconds(delay_us(random));
    return fault;
  };
}

std::unique_ptr<Communicator> make_fault_communicator(std::unique_ptr<Communicator> inner, FaultRule rule,
                                                      bool two_sided) {
  return std::make_unique<FaultCommunicator>(std::move(inner), std::move(rule), two_sided);
}

}  // namespace zeropage::comm
