#include "zeropage/comm/hosts/hosts_communicator.h"

#include <fmt/format.h>

#include <string>
#include <utility>
#include <vector>

#include "zeropage/base/error.h"
#include "zeropage/comm/call.h"
#include "zeropage/comm/hosts/bytes.h"
#include "zeropage/comm/hosts/hosts_all_to_all.h"
#include "zeropage/comm/hosts/hosts_queue.h"
#include "zeropage/comm/hosts/hosts_reduction.h"
#include "zeropage/comm/reduce_kernels.h"

namespace zeropage::comm {
namespace {

void check_size(std::int64_t size, const char* what) {
  if (size < 0) throw UsageError(fmt::format("{}: a size of {}; sizes are at least 0", what, size));
}

/// The buffers of the collectives that sort or add values on the host.
void check_is_on_host(const HostsQueue& queue, const void* buffer, const char* what) {
  if (!queue.is_on_device(buffer)) return;
  throw UsageError(fmt::format(
      "{} of the ranks of all groups: expected a buffer in host memory, got one in device memory; there is only "
      "broadcast for those",
      what));
}

class HostsCommunicator final : public Communicator {
 public:
  HostsCommunicator(std::shared_ptr<HostsQueue> queue, const HostGrid& grid, int rank, bool deterministic_reduction)
      : grid_(grid),
        host_(grid.host_of(rank)),
        local_(grid.local_of(rank)),
        in_rank_order_(deterministic_reduction),
        queue_(std::move(queue)) {}

  int rank() const override { return grid_.rank_at(host_, local_); }
  int size() const override { return grid_.size(); }
  bool owns_memory() const override { return queue_->at(Side::kInside).owns_memory(); }
  bool one_sided() const override { return false; }
  const std::byte* peer_address(int, const void*) const override {
    throw UsageError("ranks of other hosts cannot read this one's memory; ask one_sided() before peer_address()");
  }

  /// In memory shared by the ranks of a host, if they share memory, so that they read each other's shards in place.
  std::unique_ptr<Memory> allocate(std::int64_t bytes, std::string_view label) override {
    queue_->drain();
    return queue_->on(Side::kInside, [&](Communicator& inside) { return inside.allocate(bytes, label); });
  }

  WorkPtr all_gather(const void* shard, void* whole, std::int64_t shard_bytes, Tag tag) override {
    check_size(shard_bytes, "all_gather");
    check_is_on_host(*queue_, whole, "all_gather");
    HostsOperation op;
    add_all_gather(op, static_cast<const std::byte*>(shard), static_cast<std::byte*>(whole), shard_bytes, tag);
    return start(std::move(op));
  }

  WorkPtr reduce_scatter(const void* whole, void* out, std::int64_t shard_numel, DType in_dtype, DType out_dtype,
                         bool accumulate, Tag tag, OnReduced on_reduced) override {
    check_size(shard_numel, "reduce_scatter");
    check_is_on_host(*queue_, whole, "reduce_scatter");
    check_reducible(in_dtype, out_dtype, accumulate, "reduce_scatter");
    HostsOperation op;
    add_reduction(op, {static_cast<const std::byte*>(whole), static_cast<std::byte*>(out), shard_numel, in_dtype,
                       out_dtype, accumulate, tag, std::move(on_reduced)});
    return start(std::move(op));
  }

  bool sums_by_hosts() const override { return true; }
  WorkPtr reduce_scatter_in_codes(const void* whole, void* out, std::int64_t shard_numel, DType in_dtype,
                                  DType out_dtype, bool accumulate, Tag tag, OnReduced on_reduced,
                                  const SumCodec& codec) override {
    check_size(shard_numel, "reduce_scatter_in_codes");
    check_is_on_host(*queue_, whole, "reduce_scatter_in_codes");
    check_reducible(in_dtype, out_dtype, accumulate, "reduce_scatter_in_codes");
    HostsOperation op;
    if (shard_numel > 0) {
      add_coded_reduction(op, grid_, codec,
                          {static_cast<const std::byte*>(whole), static_cast<std::byte*>(out), shard_numel, in_dtype,
                           out_dtype, accumulate, tag, std::move(on_reduced)});
    }
    return start(std::move(op));
  }

  /// Each rank sums one slice, and slices are gathered in place; the remainder of an uneven division is gathered and
  /// summed by all.
  WorkPtr all_reduce(void* data, std::int64_t numel, DType dtype, Tag tag, OnReduced on_reduced) override {
    check_size(numel, "all_reduce");
    check_is_on_host(*queue_, data, "all_reduce");
    check_reducible(dtype, dtype, false, "all_reduce");
    HostsOperation op;
    const std::int64_t bytes = element_bytes(dtype);
    const std::int64_t slice_numel = numel * bytes <= kSmallReductionBytes ? 0 : numel / size();
    auto* begin = static_cast<std::byte*>(data);
    std::byte* own = begin + rank() * slice_numel * bytes;
    add_reduction(op, {begin, own, slice_numel, dtype, dtype, false, tag, on_reduced});
    add_all_gather(op, own, begin, slice_numel * bytes, tag);
    const std::int64_t done_numel = slice_numel * size();
    add_small_all_reduce(op, begin + done_numel * bytes, numel - done_numel, dtype, tag, std::move(on_reduced));
    return start(std::move(op));
  }

  WorkPtr broadcast(void* data, std::int64_t bytes, int root, Tag tag) override {
    check_size(bytes, "broadcast");
    if (root < 0 || root >= size()) {
      throw UsageError(fmt::format("broadcast from rank {}: ranks are 0 to {}", root, size() - 1));
    }
    HostsOperation op;
    if (bytes > 0 && local_ == grid_.local_of(root)) {
      add_stage(op, Side::kBetween, [=, root = grid_.host_of(root)](Communicator& column, auto& works) {
        works.push_back(column.broadcast(data, bytes, root, tag));
      });
    }
    if (bytes > 0) {
      add_stage(op, Side::kInside, [=, root = grid_.local_of(root)](Communicator& host, auto& works) {
        works.push_back(host.broadcast(data, bytes, root, tag));
      });
    }
    return queue_->start(std::move(op), data);
  }

  WorkPtr all_to_all(const void* sent, void* received, const PartBytes& part_bytes, Tag tag) override {
    check_is_on_host(*queue_, received, "all_to_all");
    sent_bytes(part_bytes, rank(), size());  // these two check for negative sizes
    received_bytes(part_bytes, rank(), size());
    HostsOperation op;
    add_all_to_all(op, grid_, rank(),
                   {static_cast<const std::byte*>(sent), static_cast<std::byte*>(received), part_bytes, tag});
    return start(std::move(op));
  }

  void barrier(Tag tag) override {
    queue_->drain();
    // First a barrier with the column, then with the host, whose other ranks have had one with their columns.
    queue_->on(Side::kBetween, [&](Communicator& column) { column.barrier(tag); });
    queue_->on(Side::kInside, [&](Communicator& host) { host.barrier(tag); });
  }

  void wait_until(const std::function<bool()>& ready, int waiting_for, std::string_view what) override {
    const auto advance_and_look = [&] {
      queue_->advance();
      return ready();
    };
    poll_until(*this, advance_and_look,
               waiting_for < 0 ? std::string(what) : fmt::format("{} (rank {})", what, waiting_for));
  }
  void throw_if_aborted() override { queue_->throw_if_aborted(); }
  std::chrono::milliseconds timeout() const override { return queue_->at(Side::kBetween).timeout(); }
  void notify() override { queue_->at(Side::kInside).notify(); }
  void set_checking(bool checking) override { queue_->set_checking(checking); }
  void abort(std::string_view reason) override { queue_->abort(reason); }
  std::int64_t bytes_moved() const override { return queue_->at(Side::kInside).bytes_moved() + bytes_between_hosts(); }
  std::int64_t bytes_between_hosts() const override { return queue_->at(Side::kBetween).bytes_moved(); }

 protected:
  std::string gather_host_bytes(std::string_view mine, Tag tag) override {
    queue_->drain();
    const std::string column =
        queue_->on(Side::kBetween, [&](Communicator& between) { return all_gather_small(between, mine, tag); });
    const std::string columns =
        queue_->on(Side::kInside, [&](Communicator& inside) { return all_gather_small(inside, column, tag); });
    std::string all;
    for (int r = 0; r < size(); ++r) {
      const int at = grid_.local_of(r) * grid_.hosts + grid_.host_of(r);
      all.append(columns, static_cast<std::size_t>(at) * mine.size(), mine.size());
    }
    return all;
  }

 private:
  WorkPtr start(HostsOperation op) { return queue_->start(std::move(op), nullptr); }

  template <typename Start>
  void add_stage(HostsOperation& op, Side side, Start start, std::function<void()> finish = {}) {
    op.stages.push_back({side, std::move(start), std::move(finish)});
  }

  void add_reduction(HostsOperation& op, const ReductionCall& call) {
    if (call.shard_numel == 0) return;
    if (in_rank_order_) {
      add_ordered_reduction(op, grid_, host_, call);
    } else {
      add_reduction_by_hosts(op, grid_, call);
    }
  }

  void add_all_gather(HostsOperation& op, const std::byte* shard, std::byte* whole, std::int64_t bytes, Tag tag) {
    if (bytes == 0) return;
    const auto column = std::make_shared<Bytes>();
    add_stage(op, Side::kBetween, [=, this](Communicator& between, auto& works) {
      works.push_back(between.all_gather(shard, column->allocate(bytes * grid_.hosts), bytes, tag));
    });
    // One block per host at its position. The block of this host is read from its shards in place.
    const auto gather_blocks = [=, this](Communicator& inside, std::vector<WorkPtr>& works) {
      for (int host = 0; host < grid_.hosts; ++host) {
        const std::byte* from = host == host_ ? shard : column->data() + host * bytes;
        works.push_back(inside.all_gather(from, whole + grid_.rank_at(host, 0) * bytes, bytes, tag));
      }
    };
    add_stage(op, Side::kInside, gather_blocks, [=] { column->free(); });
  }

  void add_small_all_reduce(HostsOperation& op, std::byte* data, std::int64_t numel, DType dtype, Tag tag,
                            OnReduced on_reduced) {
    if (numel == 0) return;
    const std::int64_t bytes = numel * element_bytes(dtype);
    const auto all = std::make_shared<Bytes>();
    add_all_gather(op, data, all->allocate(bytes * size()), bytes, tag);
    op.stages.back().finish = [=, size = size()] {
      reduce_consecutive(all->data(), size, data, numel, dtype, dtype, false, {});
      // Callers with on_reduced have evenly divided parts: then this is everything.
      if (on_reduced) on_reduced(0, numel / size);
    };
  }

  const HostGrid grid_;
  const int host_;
  const int local_;
  const bool in_rank_order_;
  const std::shared_ptr<HostsQueue> queue_;
};

}  // namespace

std::unique_ptr<Communicator> make_hosts_communicator(std::shared_ptr<HostsQueue> queue, bool deterministic_reduction) {
  const HostGrid grid = queue->grid();
  const int rank = grid.rank_at(queue->at(Side::kBetween).rank(), queue->at(Side::kInside).rank());
  return std::make_unique<HostsCommunicator>(std::move(queue), grid, rank, deterministic_reduction);
}

std::unique_ptr<Communicator> make_hosts_communicator(std::shared_ptr<Communicator> inside,
                                                      std::shared_ptr<Communicator> between,
                                                      bool deterministic_reduction, std::shared_ptr<Aborts> aborts) {
  auto queue = std::make_shared<HostsQueue>(std::move(inside), std::move(between), "host", std::move(aborts));
  return make_hosts_communicator(std::move(queue), deterministic_reduction);
}

}  // namespace zeropage::comm
