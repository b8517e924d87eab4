#include "zeropage/comm/recording_communicator.h"

#include <string>
#include <utility>

#include "zeropage/comm/call.h"
#include "zeropage/comm/wrapped_communicator.h"

namespace zeropage::comm {
namespace {

class RecordedWork final : public Work {
 public:
  RecordedWork(WorkPtr inner, std::shared_ptr<Timeline> timeline, SpanKind kind, const char* operation, Tag tag,
               std::int64_t bytes, std::int64_t begin_ns)
      : inner_(std::move(inner)), timeline_(std::move(timeline)), transfer_{kind, operation, tag.what, bytes} {
    transfer_.begin_ns = begin_ns;
  }

  bool poll() override {
    const bool complete = inner_->poll();
    if (complete) note();
    return complete;
  }

  void wait() override {
    const std::int64_t begin_ns = Timeline::now_ns();
    inner_->wait();
    if (noted_) return;
    transfer_.waited_ns = Timeline::now_ns() - begin_ns;
    if (transfer_.kind == SpanKind::kReduce) timeline_->add(SpanKind::kWait, transfer_.what, -1, begin_ns);
    note();
  }

 private:
  void note() {
    if (std::exchange(noted_, true)) return;
    transfer_.end_ns = Timeline::now_ns();
    timeline_->add(transfer_);
  }

  WorkPtr inner_;
  std::shared_ptr<Timeline> timeline_;
  Transfer transfer_;
  bool noted_ = false;
};

class RecordingCommunicator final : public WrappedCommunicator {
 public:
  RecordingCommunicator(std::shared_ptr<Communicator> inner, std::shared_ptr<Timeline> timeline)
      : WrappedCommunicator(std::move(inner)), timeline_(std::move(timeline)) {
    Communicator& job = inner_->job();
    if (&job != inner_.get()) {
      job_ = std::make_unique<RecordingCommunicator>(std::shared_ptr<Communicator>(inner_, &job), timeline_);
    }
  }

  Communicator& job() override { return job_ ? *job_ : *this; }
  WorkPtr all_gather(const void* shard, void* whole, std::int64_t shard_bytes, Tag tag) override {
    return start(SpanKind::kGather, "all_gather", tag, shard_bytes * size(),
                 [&] { return inner_->all_gather(shard, whole, shard_bytes, tag); });
  }
  WorkPtr all_gather_nearby(const void* shard, void* whole, std::int64_t shard_bytes, Tag tag) override {
    return start(SpanKind::kGather, "all_gather", tag, shard_bytes * nearby_size(),
                 [&] { return inner_->all_gather_nearby(shard, whole, shard_bytes, tag); });
  }
  WorkPtr all_to_all(const void* sent, void* received, const PartBytes& part_bytes, Tag tag) override {
    return start(SpanKind::kReduce, "all_to_all", tag, sent_bytes(part_bytes, rank(), size()),
                 [&] { return inner_->all_to_all(sent, received, part_bytes, tag); });
  }
  WorkPtr reduce_scatter(const void* whole, void* out, std::int64_t shard_numel, DType in_dtype, DType out_dtype,
                         bool accumulate, Tag tag, OnReduced on_reduced) override {
    return start(SpanKind::kReduce, "reduce_scatter", tag, shard_numel * size() * element_bytes(in_dtype), [&] {
      return inner_->reduce_scatter(whole, out, shard_numel, in_dtype, out_dtype, accumulate, tag,
                                    std::move(on_reduced));
    });
  }
  WorkPtr reduce_scatter_in_codes(const void* whole, void* out, std::int64_t shard_numel, DType in_dtype,
                                  DType out_dtype, bool accumulate, Tag tag, OnReduced on_reduced,
                                  const SumCodec& codec) override {
    return start(SpanKind::kReduce, "reduce_scatter", tag, shard_numel * size() * element_bytes(in_dtype), [&] {
      return inner_->reduce_scatter_in_codes(whole, out, shard_numel, in_dtype, out_dtype, accumulate, tag,
                                             std::move(on_reduced), codec);
    });
  }
  WorkPtr all_reduce(void* data, std::int64_t numel, DType dtype, Tag tag, OnReduced on_reduced) override {
    return start(SpanKind::kReduce, "all_reduce", tag, numel * element_bytes(dtype),
                 [&] { return inner_->all_reduce(data, numel, dtype, tag, std::move(on_reduced)); });
  }
  WorkPtr broadcast(void* data, std::int64_t bytes, int root, Tag tag) override {
    return start(SpanKind::kExchange, "broadcast", tag, bytes,
                 [&] { return inner_->broadcast(data, bytes, root, tag); });
  }
  void barrier(Tag tag) override {
    const std::int64_t begin_ns = Timeline::now_ns();
    inner_->barrier(tag);
    note_blocking("barrier", tag, 0, begin_ns);
  }

 protected:
  std::string gather_host_bytes(std::string_view mine, Tag tag) override {
    const std::int64_t begin_ns = Timeline::now_ns();
    std::string all = all_gather_small(*inner_, mine, tag);
    note_blocking("exchange", tag, static_cast<std::int64_t>(all.size()), begin_ns);
    return all;
  }

 private:
  template <typename Start>
  WorkPtr start(SpanKind kind, const char* operation, Tag tag, std::int64_t bytes, const Start& start_inner) {
    const std::int64_t begin_ns = Timeline::now_ns();
    return std::make_unique<RecordedWork>(start_inner(), timeline_, kind, operation, tag, bytes, begin_ns);
  }

  void note_blocking(const char* operation, Tag tag, std::int64_t bytes, std::int64_t begin_ns) {
    const std::int64_t end_ns = Timeline::now_ns();
    timeline_->add({SpanKind::kExchange, operation, tag.what, bytes, begin_ns, end_ns, end_ns - begin_ns});
  }

  std::shared_ptr<Timeline> timeline_;
  std::unique_ptr<RecordingCommunicator> job_;  // null: this one has all ranks of the job
};

}  // namespace

std::shared_ptr<Communicator> record_transfers(std::shared_ptr<Communicator> inner,
                                               std::shared_ptr<Timeline> timeline) {
  return std::make_shared<RecordingCommunicator>(std::move(inner), std::move(timeline));
}

}  // namespace zeropage::comm
