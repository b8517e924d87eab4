#include "zeropage/comm/nearby_communicator.h"

#include <fmt/format.h>

#include <string>
#include <utility>

#include "zeropage/base/error.h"
#include "zeropage/comm/aborts.h"
#include "zeropage/comm/hosts/host_grid.h"
#include "zeropage/comm/shm/shared_memory_communicator.h"
#include "zeropage/comm/wrapped_communicator.h"

namespace zeropage::comm {
namespace {

class NearbyCommunicator final : public WrappedCommunicator {
 public:
  NearbyCommunicator(std::shared_ptr<Communicator> all, std::shared_ptr<Communicator> nearby)
      : WrappedCommunicator(std::move(all)), nearby_(std::move(nearby)) {
    const bool fits = inner_->size() % nearby_->size() == 0 && inner_->rank() % nearby_->size() == nearby_->rank();
    if (fits) return;
    throw UsageError(
        fmt::format("rank {} of {} is rank {} of {} nearby ones; these must have consecutive numbers, and "
                    "their number must divide that of all",
                    inner_->rank(), inner_->size(), nearby_->rank(), nearby_->size()));
  }

  WorkPtr all_gather(const void* shard, void* whole, std::int64_t shard_bytes, Tag tag) override {
    return inner_->all_gather(shard, whole, shard_bytes, tag);
  }
  WorkPtr reduce_scatter(const void* whole, void* out, std::int64_t shard_numel, DType in_dtype, DType out_dtype,
                         bool accumulate, Tag tag, OnReduced on_reduced) override {
    return inner_->reduce_scatter(whole, out, shard_numel, in_dtype, out_dtype, accumulate, tag, std::move(on_reduced));
  }
  WorkPtr all_reduce(void* data, std::int64_t numel, DType dtype, Tag tag, OnReduced on_reduced) override {
    return inner_->all_reduce(data, numel, dtype, tag, std::move(on_reduced));
  }
  WorkPtr broadcast(void* data, std::int64_t bytes, int root, Tag tag) override {
    return inner_->broadcast(data, bytes, root, tag);
  }
  WorkPtr all_to_all(const void* sent, void* received, const PartBytes& part_bytes, Tag tag) override {
    return inner_->all_to_all(sent, received, part_bytes, tag);
  }
  void barrier(Tag tag) override { inner_->barrier(tag); }

  int nearby_size() const override { return nearby_->size(); }
  std::unique_ptr<Memory> allocate_nearby(std::int64_t bytes, std::string_view label) override {
    return nearby_->allocate(bytes, label);
  }
  WorkPtr all_gather_nearby(const void* shard, void* whole, std::int64_t shard_bytes, Tag tag) override {
    return nearby_->all_gather(shard, whole, shard_bytes, tag);
  }

  void throw_if_aborted() override {
    inner_->throw_if_aborted();
    nearby_->throw_if_aborted();
  }
  void set_checking(bool checking) override {
    inner_->set_checking(checking);
    nearby_->set_checking(checking);
  }
  void abort(std::string_view reason) override {
    const std::string named = fmt::format("rank {} of the job: {}", rank(), reason);
    inner_->abort(reason);
    nearby_->abort(named);
  }
  std::int64_t bytes_moved() const override { return inner_->bytes_moved() + nearby_->bytes_moved(); }

 protected:
  std::string gather_host_bytes(std::string_view mine, Tag tag) override {
    return all_gather_small(*inner_, mine, tag);
  }

 private:
  const std::shared_ptr<Communicator> nearby_;
};

}  // namespace

void check_nearby(const World& world, std::int64_t count) {
  if (column_count(world) > 0 && world.local_size % count == 0) return;
  throw ConfigError(
      fmt::format("zero_optimization.zero_hpz_partition_size: expected a divisor of the number of ranks on each host, "
                  "got {}, where "
                  "rank {} of {} is rank {} of {} on its host; ranks of a host need consecutive numbers, too",
                  count, world.rank, world.size, world.local_rank, world.local_size));
}

std::shared_ptr<Communicator> join_nearby(std::shared_ptr<Communicator> all, const World& world, std::int64_t count,
                                          const std::string& name) {
  check_nearby(world, count);
  const int size = static_cast<int>(count);
  const std::string own_name = fmt::format("{}-near{}", name, world.rank / size);
  auto nearby = join_shared_memory(own_name, world.rank % size, size, all->timeout(), aborts_of(all));
  return with_nearby(std::move(all), std::move(nearby));
}

std::shared_ptr<Communicator> with_nearby(std::shared_ptr<Communicator> all, std::shared_ptr<Communicator> nearby) {
  return std::make_shared<NearbyCommunicator>(std::move(all), std::move(nearby));
}

}  // namespace zeropage::comm
