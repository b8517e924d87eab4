#include "zeropage/comm/hosts/group_communicator.h"

#include <fmt/format.h>

#include <utility>
#include <vector>

#include "zeropage/base/error.h"
#include "zeropage/comm/call.h"
#include "zeropage/comm/hosts/hosts_communicator.h"
#include "zeropage/comm/hosts/hosts_queue.h"
#include "zeropage/comm/hosts/replicated_reduction.h"
#include "zeropage/comm/reduce_kernels.h"
#include "zeropage/comm/shm/shared_memory_communicator.h"
#include "zeropage/comm/thread_communicator.h"

namespace zeropage::comm {
namespace {

const char* const kUnit = "group";

class GroupCommunicator final : public Communicator {
 public:
  GroupCommunicator(std::shared_ptr<HostsQueue> queue, bool deterministic_reduction)
      : grid_(queue->grid()),
        group_(queue->at(Side::kBetween).rank()),
        place_(queue->at(Side::kInside).rank()),
        in_rank_order_(deterministic_reduction),
        queue_(std::move(queue)),
        job_(make_hosts_communicator(queue_, deterministic_reduction)) {}

  int rank() const override { return place_; }
  int size() const override { return grid_.local_size; }
  Communicator& job() override { return *job_; }
  std::unique_ptr<Memory> allocate(std::int64_t bytes, std::string_view label) override {
    return job_->allocate(bytes, label);
  }
  bool owns_memory() const override { return job_->owns_memory(); }
  bool one_sided() const override { return false; }
  const std::byte* peer_address(int, const void*) const override {
    throw UsageError("a group of ranks exchanges messages; ask one_sided() before peer_address()");
  }

  WorkPtr all_gather(const void* shard, void* whole, std::int64_t shard_bytes, Tag tag) override {
    return start_inside(whole, [=](Communicator& inside) { return inside.all_gather(shard, whole, shard_bytes, tag); });
  }

  WorkPtr reduce_scatter(const void* whole, void* out, std::int64_t shard_numel, DType in_dtype, DType out_dtype,
                         bool accumulate, Tag tag, OnReduced on_reduced) override {
    check_reducible(in_dtype, out_dtype, accumulate, "reduce_scatter");
    HostsOperation op;
    add_reduction(op, {static_cast<const std::byte*>(whole), static_cast<std::byte*>(out), shard_numel, in_dtype,
                       out_dtype, accumulate, tag, std::move(on_reduced)});
    return queue_->start(std::move(op), whole);
  }

  WorkPtr all_reduce(void* data, std::int64_t numel, DType dtype, Tag tag, OnReduced on_reduced) override {
    if (numel % size() != 0) return job_->all_reduce(data, numel, dtype, tag, std::move(on_reduced));
    check_reducible(dtype, dtype, false, "all_reduce");
    HostsOperation op;
    const std::int64_t shard_numel = numel / size();
    const std::int64_t shard_bytes = shard_numel * element_bytes(dtype);
    auto* const begin = static_cast<std::byte*>(data);
    std::byte* const own = begin + place_ * shard_bytes;
    add_reduction(op, {begin, own, shard_numel, dtype, dtype, false, tag, std::move(on_reduced)});
    op.stages.push_back({Side::kInside,
                         [=](Communicator& inside, std::vector<WorkPtr>& works) {
                           works.push_back(inside.all_gather(own, begin, shard_bytes, tag));
                         },
                         {}});
    return queue_->start(std::move(op), data);
  }

  WorkPtr broadcast(void* data, std::int64_t bytes, int root, Tag tag) override {
    return start_inside(data, [=](Communicator& inside) { return inside.broadcast(data, bytes, root, tag); });
  }

  WorkPtr all_to_all(const void* sent, void* received, const PartBytes& part_bytes, Tag tag) override {
    return start_inside(received != nullptr ? received : sent,
                        [=](Communicator& inside) { return inside.all_to_all(sent, received, part_bytes, tag); });
  }

  void barrier(Tag tag) override {
    queue_->drain();
    queue_->on(Side::kInside, [&](Communicator& inside) { inside.barrier(tag); });
  }

  void wait_until(const std::function<bool()>& ready, int waiting_for, std::string_view what) override {
    job_->wait_until(ready, waiting_for < 0 ? waiting_for : grid_.rank_at(group_, waiting_for), what);
  }
  void throw_if_aborted() override { job_->throw_if_aborted(); }
  std::chrono::milliseconds timeout() const override { return job_->timeout(); }
  void notify() override { job_->notify(); }
  void set_checking(bool checking) override { job_->set_checking(checking); }
  void abort(std::string_view reason) override { job_->abort(reason); }
  std::int64_t bytes_moved() const override { return job_->bytes_moved(); }
  std::int64_t bytes_between_hosts() const override { return job_->bytes_between_hosts(); }

 protected:
  std::string gather_host_bytes(std::string_view mine, Tag tag) override {
    queue_->drain();
    return queue_->on(Side::kInside, [&](Communicator& inside) { return all_gather_small(inside, mine, tag); });
  }

 private:
  /// `buffer`: of the collective, in whose memory it is.
  template <typename Start>
  WorkPtr start_inside(const void* buffer, Start start) {
    HostsOperation op;
    op.stages.push_back({Side::kInside,
                         [start](Communicator& inside, std::vector<WorkPtr>& works) { works.push_back(start(inside)); },
                         {}});
    return queue_->start(std::move(op), buffer);
  }

  void add_reduction(HostsOperation& op, const ReductionCall& call) {
    if (call.shard_numel < 0)
      throw UsageError(fmt::format("a sum of {} elements; sizes are at least 0", call.shard_numel));
    if (call.shard_numel == 0) return;
    if (in_rank_order_) {
      add_replicated_reduction(op, grid_, group_, call, queue_->memory_of(call.whole));
    } else {
      add_replicated_reduction_by_groups(op, call, queue_->memory_of(call.whole));
    }
  }

  const HostGrid grid_;  // a row per group
  const int group_;
  const int place_;  // in the group
  const bool in_rank_order_;
  const std::shared_ptr<HostsQueue> queue_;
  const std::unique_ptr<Communicator> job_;
};

}  // namespace

std::unique_ptr<Communicator> make_group_communicator(std::shared_ptr<Communicator> inside,
                                                      std::shared_ptr<Communicator> between,
                                                      bool deterministic_reduction, std::shared_ptr<Aborts> aborts,
                                                      std::shared_ptr<GroupDevice> device) {
  auto queue =
      std::make_shared<HostsQueue>(std::move(inside), std::move(between), kUnit, std::move(aborts), std::move(device));
  return std::make_unique<GroupCommunicator>(std::move(queue), deterministic_reduction);
}

void check_groups(const World& world, std::int64_t count) {
  if (column_count(world) > 0 && world.local_size % count == 0) return;
  throw ConfigError(
      fmt::format("zeropage.shard_ranks: expected a divisor of the number of ranks on each host, got {}, where rank {} "
                  "of {} is rank {} of {} on its host; ranks of a host need consecutive numbers, too",
                  count, world.rank, world.size, world.local_rank, world.local_size));
}

std::shared_ptr<Aborts> join_shared_aborts(const std::string& name, const World& world,
                                           std::chrono::milliseconds timeout) {
  return aborts_of(join_shared_memory(name + "-aborts", world.rank, world.size, timeout));
}

std::unique_ptr<Communicator> join_shared_groups(const std::string& name, const World& world, std::int64_t count,
                                                 bool deterministic_reduction, std::chrono::milliseconds timeout,
                                                 const std::shared_ptr<Aborts>& aborts) {
  check_groups(world, count);
  const HostGrid grid{world.size / static_cast<int>(count), static_cast<int>(count)};
  const int group = grid.host_of(world.rank);
  const int place = grid.local_of(world.rank);
  const auto part = [&](Side side) { return aborts_of_side(aborts, side, grid, world.rank, kUnit); };
  auto inside =
      join_shared_memory(fmt::format("{}-group{}", name, group), place, grid.local_size, timeout, part(Side::kInside));
  auto between =
      join_shared_memory(fmt::format("{}-replicas{}", name, place), group, grid.hosts, timeout, part(Side::kBetween));
  return make_group_communicator(std::move(inside), std::move(between), deterministic_reduction, aborts);
}

std::vector<std::unique_ptr<Communicator>> make_thread_groups(int groups, int count, std::chrono::milliseconds timeout,
                                                              bool deterministic_reduction) {
  const auto aborts = make_thread_aborts();
  const HostGrid grid{groups, count};
  std::vector<std::vector<std::unique_ptr<Communicator>>> replicas;  // by place
  for (int place = 0; place < count; ++place) {
    replicas.push_back(
        make_thread_communicators(groups, timeout, aborts_of_side(aborts, Side::kBetween, grid, place, kUnit)));
  }
  std::vector<std::unique_ptr<Communicator>> ranks;
  for (int group = 0; group < groups; ++group) {
    const int first = grid.rank_at(group, 0);
    auto inside = make_thread_communicators(count, timeout, aborts_of_side(aborts, Side::kInside, grid, first, kUnit));
    for (int place = 0; place < count; ++place) {
      auto& between = replicas[static_cast<std::size_t>(place)][static_cast<std::size_t>(group)];
      ranks.push_back(make_group_communicator(std::move(inside[static_cast<std::size_t>(place)]), std::move(between),
                                              deterministic_reduction, aborts));
    }
  }
  return ranks;
}

}  // namespace zeropage::comm
