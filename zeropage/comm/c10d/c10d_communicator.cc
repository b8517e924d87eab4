#include "zeropage/comm/c10d/c10d_communicator.h"

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <fmt/format.h>

#include <exception>
#include <utility>
#include <vector>

#include "zeropage/base/error.h"
#include "zeropage/comm/c10d/c10d_buffers.h"
#include "zeropage/comm/c10d/c10d_device.h"
#include "zeropage/comm/c10d/c10d_queue.h"
#include "zeropage/comm/hosts/group_communicator.h"
#include "zeropage/comm/hosts/hosts_queue.h"
#include "zeropage/comm/queued_work.h"
#include "zeropage/comm/reduce_kernels.h"

namespace zeropage::comm {
namespace {

class C10dWork final : public QueuedWork<C10dQueue, C10dOperation> {
 public:
  using QueuedWork::QueuedWork;
  ~C10dWork() override {
    end([this] { return "an error ended its " + describe_call(operation_->call); });
  }
  void order_current_stream() { queue_.order_stream_after(*operation_); }
};

/// The group that moves a buffer, and the buffer's device.
struct Carrier {
  ProcessGroupPtr group;
  c10::Device device;
  bool on_stream;
};

class C10dCommunicator final : public Communicator {
 public:
  C10dCommunicator(ProcessGroupPtr data, ProcessGroupPtr control, c10::Device device, bool deterministic_reduction,
                   std::chrono::milliseconds timeout, std::shared_ptr<Aborts> aborts)
      : data_(std::move(data)),
        control_(std::move(control)),
        device_(device),
        on_stream_(!device.is_cpu() && data_->getBackend(device.type())->getBackendName() != "gloo"),
        sums_locally_(deterministic_reduction || !on_stream_),
        timeout_(timeout),
        rank_(data_->getRank()),
        size_(data_->getSize()),
        queue_(data_, control_, timeout, std::move(aborts)) {}

  bool orders_streams() const { return on_stream_; }

  int rank() const override { return rank_; }
  int size() const override { return size_; }
  bool owns_memory() const override { return false; }
  bool one_sided() const override { return false; }
  const std::byte* peer_address(int, const void*) const override {
    throw UsageError("process groups cannot read peers' memory; ask one_sided() before peer_address()");
  }
  std::unique_ptr<Memory> allocate(std::int64_t bytes, std::string_view label) override {
    check_numel(bytes, "allocate");
    return make_private_memory(bytes, device_, label);
  }

  WorkPtr all_gather(const void* shard, void* whole, std::int64_t shard_bytes, Tag tag) override {
    C10dOperation op = describe(OpKind::kAllGather, DType::kOther, shard_bytes, tag);
    if (shard_bytes > 0) add_all_gather(op, carrier_of(whole), shard, whole, shard_bytes);
    return start(std::move(op));
  }

  WorkPtr all_to_all(const void* sent, void* received, const PartBytes& part_bytes, Tag tag) override {
    C10dOperation op = describe(OpKind::kAllToAll, DType::kOther, sent_bytes(part_bytes, 0, size_), tag);
    add_all_to_all(op, sent, received, part_bytes);
    return start(std::move(op));
  }

  WorkPtr reduce_scatter(const void* whole, void* out, std::int64_t shard_numel, DType in_dtype, DType out_dtype,
                         bool accumulate, Tag tag, OnReduced on_reduced) override {
    check_reducible(in_dtype, out_dtype, accumulate, "reduce_scatter");
    C10dOperation op = describe(OpKind::kReduceScatter, in_dtype, shard_numel, tag);
    if (shard_numel > 0) {
      const Carrier carrier = carrier_of(whole);
      if (sums_locally_ || !carrier.on_stream) {
        add_exchange_and_sum(op, carrier, whole, out, shard_numel, in_dtype, out_dtype, accumulate,
                             std::move(on_reduced));
      } else {
        add_backend_reduce_scatter(op, carrier, whole, out, shard_numel, in_dtype, out_dtype, accumulate);
      }
    }
    return start(std::move(op));
  }

  WorkPtr all_reduce(void* data, std::int64_t numel, DType dtype, Tag tag, OnReduced on_reduced) override {
    check_reducible(dtype, dtype, false, "all_reduce");
    C10dOperation op = describe(OpKind::kAllReduce, dtype, numel, tag);
    if (numel > 0) {
      const Carrier carrier = carrier_of(data);
      if (!carrier.device.is_cpu()) on_reduced = {};
      // The order of two terms does not matter: the backend's sum has the same bits, in one call instead of two.
      const bool any_order = size_ == 2 && dtype == DType::kFloat32;
      if (size_ == 1) {
        if (on_reduced) on_reduced(0, numel);
      } else if ((sums_locally_ || !carrier.on_stream) && !any_order) {
        add_ordered_all_reduce(op, carrier, data, numel, dtype, std::move(on_reduced));
      } else {
        add_backend_all_reduce(op, carrier, data, numel, dtype, std::move(on_reduced));
      }
    }
    return start(std::move(op));
  }

  WorkPtr broadcast(void* data, std::int64_t bytes, int root, Tag tag) override {
    if (root < 0 || root >= size_) {
      throw UsageError(fmt::format("broadcast from rank {}: ranks are 0 to {}", root, size_ - 1));
    }
    C10dOperation op = describe(OpKind::kBroadcast, DType::kOther, bytes, tag);
    op.call.root = root;
    if (bytes > 0 && size_ > 1) {
      const Carrier carrier = carrier_of(data);
      std::vector<at::Tensor> tensors = {wrap(data, bytes, DType::kOther, carrier.device)};
      add_stage(op, carrier, [=, this, group = carrier.group]() mutable {
        c10d::BroadcastOptions options;
        options.rootRank = root;
        options.timeout = timeout_;
        return group->broadcast(tensors, options);
      });
      if (rank_ != root) bytes_moved_ += bytes;
    }
    return start(std::move(op));
  }

  void barrier(Tag tag) override {
    C10dOperation op = describe(OpKind::kBarrier, DType::kOther, 0, tag);
    const auto started = queue_.start(std::move(op), true);  // an exchange of descriptions is a barrier, too
    queue_.wait(*started);
  }

  void wait_until(const std::function<bool()>& ready, int waiting_for, std::string_view what) override {
    queue_.wait_until(ready, waiting_for < 0 ? std::string(what) : fmt::format("{} (rank {})", what, waiting_for));
  }
  void throw_if_aborted() override { queue_.throw_if_aborted(); }
  std::chrono::milliseconds timeout() const override { return timeout_; }
  void set_checking(bool checking) override { checking_ = checking; }
  void abort(std::string_view reason) override { queue_.abort(std::string(reason)); }
  std::int64_t bytes_moved() const override { return bytes_moved_; }

 protected:
  std::string gather_host_bytes(std::string_view mine, Tag tag) override {
    const auto bytes = static_cast<std::int64_t>(mine.size());
    std::string all(mine.size() * static_cast<std::size_t>(size_), '\0');
    C10dOperation op = describe(OpKind::kAllGather, DType::kOther, bytes, tag);
    if (bytes > 0) add_all_gather(op, host_carrier(), mine.data(), all.data(), bytes);
    start(std::move(op))->wait();
    return all;
  }

 private:
  static void check_numel(std::int64_t numel, const char* what) {
    if (numel < 0) throw UsageError(fmt::format("{}: a size of {} elements; sizes are at least 0", what, numel));
  }

  Carrier host_carrier() const { return {device_.is_cpu() ? data_ : control_, c10::Device(c10::kCPU), false}; }

  /// Host values (orders, names) go through the same functions as device buffers.
  Carrier carrier_of(const void* pointer) const {
    if (device_of(pointer, device_).is_cpu()) return host_carrier();
    return {data_, device_, on_stream_};
  }

  C10dOperation describe(OpKind kind, DType dtype, std::int64_t numel, Tag tag) {
    C10dOperation op;
    op.call.kind = kind;
    op.call.dtype = dtype;
    op.call.numel = numel;
    check_numel(numel, describe_call(op.call).c_str());
    set_tag(op.call, tag);
    return op;
  }

  void add_stage(C10dOperation& op, const Carrier& carrier, std::function<C10dWorkPtr()> start,
                 std::function<void()> finish = {}) {
    op.stages.push_back({std::move(start), std::move(finish), carrier.on_stream});
  }

  WorkPtr start(C10dOperation op) { return std::make_unique<C10dWork>(queue_, queue_.start(std::move(op), checking_)); }

  void add_all_gather(C10dOperation& op, const Carrier& carrier, const void* shard, void* whole, std::int64_t bytes) {
    const at::Tensor from = wrap(shard, bytes, DType::kOther, carrier.device);
    const at::Tensor to = wrap(whole, bytes * size_, DType::kOther, carrier.device);
    if (size_ == 1) {
      if (shard != whole) to.copy_(from);
      return;
    }
    add_stage(op, carrier, [=, this, group = carrier.group] { return gather_into(group, to, from, timeout_); });
    bytes_moved_ += bytes * (size_ - 1);
  }

  void add_all_to_all(C10dOperation& op, const void* sent, void* received, const PartBytes& part_bytes) {
    std::vector<std::int64_t> sent_parts;
    std::vector<std::int64_t> received_parts;
    for (int r = 0; r < size_; ++r) {
      sent_parts.push_back(part_bytes(rank_, r));
      received_parts.push_back(part_bytes(r, rank_));
    }
    const std::int64_t own_bytes = sent_bytes(part_bytes, rank_, size_);
    const Carrier carrier = carrier_of(own_bytes > 0 ? sent : received);
    at::Tensor from = wrap(sent, own_bytes, DType::kOther, carrier.device);
    at::Tensor to = wrap(received, received_bytes(part_bytes, rank_, size_), DType::kOther, carrier.device);
    if (size_ == 1) {
      to.copy_(from);
      return;
    }
    bytes_moved_ += own_bytes - sent_parts[static_cast<std::size_t>(rank_)];
    add_stage(op, carrier, [=, this, group = carrier.group]() mutable {
      return exchange_parts(group, to, from, received_parts, sent_parts);
    });
  }

  /// No sizes: all parts are equal.
  C10dWorkPtr exchange_parts(const ProcessGroupPtr& group, at::Tensor& received, at::Tensor& sent,
                             std::vector<std::int64_t> received_parts = {},
                             std::vector<std::int64_t> sent_parts = {}) const {
    c10d::AllToAllOptions options;
    options.timeout = timeout_;
    return group->alltoall_base(received, sent, received_parts, sent_parts, options);
  }

  /// Every rank sends its contribution to each shard to the shard's owner, who sums them in the order of the ranks.
  void add_exchange_and_sum(C10dOperation& op, const Carrier& carrier, const void* whole, void* out,
                            std::int64_t shard_numel, DType in_dtype, DType out_dtype, bool accumulate,
                            OnReduced on_reduced) {
    const std::int64_t shard_bytes = shard_numel * element_bytes(in_dtype);
    at::Tensor sent = wrap(whole, shard_bytes * size_, DType::kOther, carrier.device);
    if (size_ == 1) return take_own(sent, out, shard_numel, in_dtype, out_dtype, accumulate, on_reduced);
    // Allocated when the stage starts, so that collectives waiting in the queue use no memory.
    auto received = std::make_shared<at::Tensor>();
    add_stage(
        op, carrier,
        [=, this, group = carrier.group]() mutable {
          *received = at::empty_like(sent);
          return exchange_parts(group, *received, sent);
        },
        [=, size = size_] {
          sum_received(*received, size, out, shard_numel, in_dtype, out_dtype, accumulate, on_reduced);
          note_use(*received);
          received->reset();
        });
    bytes_moved_ += shard_bytes * (size_ - 1);
  }

  /// Each rank sums one slice, and slices are gathered in place; the remainder of an uneven division is gathered and
  /// summed by all.
  void add_ordered_all_reduce(C10dOperation& op, const Carrier& carrier, void* data, std::int64_t numel, DType dtype,
                              OnReduced on_reduced) {
    const std::int64_t bytes = element_bytes(dtype);
    const std::int64_t slice_numel = numel * bytes <= kSmallReductionBytes ? 0 : numel / size_;
    auto* begin = static_cast<std::byte*>(data);
    if (slice_numel > 0) {
      std::byte* own = begin + rank_ * slice_numel * bytes;
      add_exchange_and_sum(op, carrier, data, own, slice_numel, dtype, dtype, false, on_reduced);
      add_all_gather(op, carrier, own, data, slice_numel * bytes);
    }
    const std::int64_t rest_numel = numel - slice_numel * size_;
    if (rest_numel == 0) return;
    std::byte* rest = begin + slice_numel * size_ * bytes;
    const at::Tensor mine = wrap(rest, rest_numel * bytes, DType::kOther, carrier.device);
    const at::Tensor all = at::empty({rest_numel * bytes * size_}, mine.options());
    add_stage(
        op, carrier, [=, this, group = carrier.group] { return gather_into(group, all, mine, timeout_); },
        [=, size = size_] {
          sum_received(all, size, rest, rest_numel, dtype, dtype, false, {});
          note_use(all);
          // Callers with on_reduced have evenly divided parts: then the rest is everything.
          if (on_reduced) on_reduced(0, rest_numel / size);
        });
    bytes_moved_ += rest_numel * bytes * (size_ - 1);
  }

  void add_backend_reduce_scatter(C10dOperation& op, const Carrier& carrier, const void* whole, void* out,
                                  std::int64_t shard_numel, DType in_dtype, DType out_dtype, bool accumulate) {
    at::Tensor from = wrap(whole, shard_numel * size_, in_dtype, carrier.device);
    at::Tensor target = wrap(out, shard_numel, out_dtype, carrier.device);
    const bool direct = in_dtype == out_dtype && !accumulate;
    at::Tensor sum = direct ? target : at::empty({shard_numel}, from.options());
    add_stage(
        op, carrier,
        [=, this, group = carrier.group]() mutable {
          c10d::ReduceScatterOptions options;
          options.timeout = timeout_;
          return group->_reduce_scatter_base(sum, from, options);
        },
        [=] {
          if (direct) return;
          accumulate ? target.add_(sum) : target.copy_(sum);
          note_use(sum);
        });
    bytes_moved_ += shard_numel * element_bytes(in_dtype) * (size_ - 1);
  }

  void add_backend_all_reduce(C10dOperation& op, const Carrier& carrier, void* data, std::int64_t numel, DType dtype,
                              OnReduced on_reduced) {
    std::vector<at::Tensor> tensors = {wrap(data, numel, dtype, carrier.device)};
    std::function<void()> tell;
    if (on_reduced)
      tell = [on_reduced = std::move(on_reduced), part_numel = numel / size_] { on_reduced(0, part_numel); };
    add_stage(
        op, carrier,
        [=, this, group = carrier.group]() mutable {
          c10d::AllreduceOptions options;
          options.timeout = timeout_;
          return group->allreduce(tensors, options);
        },
        std::move(tell));
    bytes_moved_ += 2 * numel * element_bytes(dtype) * (size_ - 1) / size_;
  }

  const ProcessGroupPtr data_;
  const ProcessGroupPtr control_;
  const c10::Device device_;
  const bool on_stream_;
  const bool sums_locally_;
  const std::chrono::milliseconds timeout_;
  const int rank_;
  const int size_;
  C10dQueue queue_;
  bool checking_ = true;
  std::int64_t bytes_moved_ = 0;
};

}  // namespace

std::unique_ptr<Communicator> make_c10d_communicator(c10::intrusive_ptr<c10d::ProcessGroup> data,
                                                     c10::intrusive_ptr<c10d::ProcessGroup> control, c10::Device device,
                                                     bool deterministic_reduction, std::chrono::milliseconds timeout,
                                                     std::shared_ptr<Aborts> aborts) {
  // Not with the first collective, in which the host would wait inside the backend for later ranks.
  if (!device.is_cpu() && data->getSize() > 1) data->getBackend(device.type())->eagerConnectSingleDevice(device);
  return std::make_unique<C10dCommunicator>(std::move(data), std::move(control), device, deterministic_reduction,
                                            timeout, std::move(aborts));
}

std::unique_ptr<Communicator> make_c10d_groups(C10dGroups inside, C10dGroups between, c10::Device device,
                                               bool deterministic_reduction, std::chrono::milliseconds timeout,
                                               std::shared_ptr<Aborts> aborts) {
  const HostGrid grid{between.data->getSize(), inside.data->getSize()};
  const int rank = grid.rank_at(between.data->getRank(), inside.data->getRank());
  const auto make = [&](Side side, C10dGroups& groups) {
    return std::make_shared<C10dCommunicator>(std::move(groups.data), std::move(groups.control), device,
                                              deterministic_reduction, timeout,
                                              aborts_of_side(aborts, side, grid, rank, "group"));
  };
  auto group = make(Side::kInside, inside);
  auto replicas = make(Side::kBetween, between);
  const auto order_after = [](Work& work) { dynamic_cast<C10dWork&>(work).order_current_stream(); };
  auto streams = make_c10d_device(device, group->orders_streams(), order_after);
  return make_group_communicator(std::move(group), std::move(replicas), deterministic_reduction, std::move(aborts),
                                 std::move(streams));
}

}  // namespace zeropage::comm
