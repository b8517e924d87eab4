#include "zeropage/comm/c10d/c10d_job.h"

#include <fmt/format.h>

#include <string>
#include <utility>

// torch's headers last, because they define macros.
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>
#ifdef USE_C10D_NCCL
#include <torch/csrc/distributed/c10d/ProcessGroupNCCL.hpp>
#endif

#include "zeropage/base/error.h"
#include "zeropage/comm/c10d/c10d_aborts.h"
#include "zeropage/comm/c10d/c10d_communicator.h"
#include "zeropage/comm/c10d/c10d_hosts.h"
#include "zeropage/comm/c10d/c10d_store.h"

namespace zeropage::comm {
namespace {

using std::chrono::milliseconds;
using BackendPtr = c10::intrusive_ptr<c10d::Backend>;
using BackendType = c10d::ProcessGroup::BackendType;
using GroupPtr = c10::intrusive_ptr<c10d::ProcessGroup>;
using StorePtr = c10::intrusive_ptr<c10d::Store>;

BackendPtr make_nccl(const StorePtr& store, int rank, int size, milliseconds timeout) {
#ifdef USE_C10D_NCCL
  auto options = c10d::ProcessGroupNCCL::Options::create();
  options->timeout = timeout;
  return c10::make_intrusive<c10d::ProcessGroupNCCL>(store, rank, size, std::move(options));
#else
  throw ConfigError(
      "ranks on GPUs talk through NCCL, and this zeropage was built without the headers of CUDA and NCCL. Build it "
      "where they are, or hand communicators over in Options::communicator and reductions");
#endif
}

GroupPtr make_nccl_group(const StorePtr& store, const char* name, c10::DeviceType device, int rank, int size,
                         milliseconds timeout) {
  const StorePtr own = c10::make_intrusive<c10d::PrefixStore>(name, store);
  auto group = c10::make_intrusive<c10d::ProcessGroup>(own, rank, size);
  group->setBackend(device, BackendType::NCCL, make_nccl(own, rank, size, timeout));
  group->setDefaultBackend(BackendType::NCCL);
  return group;
}

C10dGroups make_groups(const StorePtr& store, c10::Device device, int rank, int size, milliseconds timeout) {
  const auto gloo = [&](const char* name) { return make_gloo_group(store, name, rank, size, timeout); };
  auto data = device.is_cpu() ? gloo("data") : make_nccl_group(store, "data", device.type(), rank, size, timeout);
  return {std::move(data), gloo("control")};
}

/// Calls `join` with the part of the job's store for `number`.
template <typename Join>
auto join_by_store(const World& world, const Meeting& meeting, const std::string& token, std::int64_t number,
                   milliseconds timeout, const Join& join) {
  const StorePtr job = job_store(world, meeting, token, timeout);
  try {
    return join(StorePtr(c10::make_intrusive<c10d::PrefixStore>(std::to_string(number), job)));
  } catch (...) {
    rethrow_not_joined(world, meeting);
  }
}

std::shared_ptr<Aborts> aborts_by_store(const World& world, const Meeting& meeting, const std::string& token,
                                        std::int64_t aborts, milliseconds timeout) {
  return store_aborts(c10::make_intrusive<c10d::PrefixStore>(fmt::format("aborts{}", aborts),
                                                             job_store(world, meeting, token, timeout)));
}

}  // namespace

std::unique_ptr<Communicator> join_c10d_job(const World& world, const Meeting& meeting, const std::string& token,
                                            std::int64_t number, std::int64_t aborts, c10::Device device,
                                            bool deterministic_reduction, milliseconds timeout) {
  return join_by_store(world, meeting, token, number, timeout, [&](const StorePtr& store) {
    C10dGroups groups = make_groups(store, device, world.rank, world.size, timeout);
    return make_c10d_communicator(std::move(groups.data), std::move(groups.control), device, deterministic_reduction,
                                  timeout, aborts_by_store(world, meeting, token, aborts, timeout));
  });
}

HostGrid hosts_of_c10d_job(const World& world, const Meeting& meeting, const std::string& token, std::int64_t number,
                           milliseconds timeout) {
  return join_by_store(world, meeting, token, number, timeout,
                       [&](const StorePtr& store) { return agree_on_hosts(*store, world); });
}

std::unique_ptr<Communicator> join_c10d_hosts(const HostGrid& grid, const World& world, const Meeting& meeting,
                                              const std::string& token, std::int64_t number, std::int64_t aborts,
                                              const std::string& name, bool deterministic_reduction,
                                              milliseconds timeout) {
  return join_by_store(world, meeting, token, number, timeout, [&](const StorePtr& store) {
    return join_hosts(grid, world, store, name, deterministic_reduction, timeout,
                      aborts_by_store(world, meeting, token, aborts, timeout))
        .communicator;
  });
}

std::unique_ptr<Communicator> join_c10d_groups(const World& world, std::int64_t count, const Meeting& meeting,
                                               const std::string& token, std::int64_t number, std::int64_t aborts,
                                               const std::string& name, bool deterministic_reduction,
                                               milliseconds timeout) {
  return join_by_store(world, meeting, token, number, timeout, [&](const StorePtr& store) {
    return join_groups(world, count, store, name, deterministic_reduction, timeout,
                       aborts_by_store(world, meeting, token, aborts, timeout))
        .communicator;
  });
}

std::unique_ptr<Communicator> join_c10d_device_groups(const World& world, std::int64_t count, const Meeting& meeting,
                                                      const std::string& token, std::int64_t number,
                                                      std::int64_t aborts, c10::Device device,
                                                      bool deterministic_reduction, milliseconds timeout) {
  const HostGrid grid{world.size / static_cast<int>(count), static_cast<int>(count)};
  const int group = grid.host_of(world.rank);
  const int place = grid.local_of(world.rank);
  return join_by_store(world, meeting, token, number, timeout, [&](const StorePtr& store) {
    const auto join = [&](const std::string& name, int rank, int size) {
      return make_groups(c10::make_intrusive<c10d::PrefixStore>(name, store), device, rank, size, timeout);
    };
    C10dGroups inside = join(fmt::format("group{}", group), place, grid.local_size);
    C10dGroups between = join(fmt::format("replicas{}", place), group, grid.hosts);
    return make_c10d_groups(std::move(inside), std::move(between), device, deterministic_reduction, timeout,
                            aborts_by_store(world, meeting, token, aborts, timeout));
  });
}

}  // namespace zeropage::comm
