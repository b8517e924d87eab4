#include "zeropage/comm/c10d/c10d_hosts.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>
#include <vector>

// torch's headers last, because they define macros.
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>

#include "zeropage/base/error.h"
#include "zeropage/base/log.h"
#include "zeropage/comm/c10d/c10d_communicator.h"
#include "zeropage/comm/hosts/hosts_communicator.h"
#include "zeropage/comm/shm/shared_memory_communicator.h"

namespace zeropage::comm {
namespace {

using std::chrono::milliseconds;
using GroupPtr = c10::intrusive_ptr<c10d::ProcessGroup>;
using StorePtr = c10::intrusive_ptr<c10d::Store>;

std::unique_ptr<Communicator> join_host(const HostGrid& grid, const World& world, const std::string& name,
                                        milliseconds timeout) {
  // Tests have several hosts on one machine.
  const std::string own_name = fmt::format("{}-host{}", name, grid.host_of(world.rank));
  const auto failed = [&](const std::exception& error) {
    return fmt::format(
        "the ranks of host {} cannot share memory: {}; zeropage.hierarchical_collectives false does without",
        grid.host_of(world.rank), error.what());
  };
  try {
    return join_shared_memory(own_name, world.local_rank, world.local_size, timeout);
  } catch (const TimeoutError& error) {
    throw TimeoutError(failed(error));
  } catch (const IoError& error) {
    throw IoError(failed(error));
  }
}

}  // namespace

HostGrid agree_on_hosts(c10d::Store& store, const World& world) {
  const auto key = [](int rank) { return fmt::format("columns/{}", rank); };
  const std::string own = fmt::format("{}/{}", column_count(world), world.local_size);
  store.set(key(world.rank), std::vector<std::uint8_t>(own.begin(), own.end()));
  bool is_table = column_count(world) > 0;
  bool shares_hosts = false;
  for (int rank = 0; rank < world.size; ++rank) {
    const auto bytes = store.get(key(rank));
    const std::string theirs(bytes.begin(), bytes.end());
    is_table &= theirs == own;
    shares_hosts |= !theirs.ends_with("/1");
  }
  const HostGrid grid = is_table ? HostGrid{world.size / world.local_size, world.local_size} : HostGrid{1, world.size};
  if (!is_table && shares_hosts && world.rank == 0) {
    log_warn(
        "every rank exchanges parameters and gradients with every other one, also on its own host: collectives by "
        "hosts need as many ranks on each host, with consecutive numbers on each");
  }
  return grid.is_useful() ? grid : HostGrid{1, world.size};
}

GroupPtr make_gloo_group(const StorePtr& store, const std::string& name, int rank, int size, milliseconds timeout) {
  const StorePtr own = c10::make_intrusive<c10d::PrefixStore>(name, store);
  auto group = c10::make_intrusive<c10d::ProcessGroup>(own, rank, size);
  auto gloo = c10::make_intrusive<c10d::ProcessGroupGloo>(own, rank, size,
                                                          c10d::ProcessGroupGloo::Options::create_default(timeout));
  group->setBackend(c10::DeviceType::CPU, c10d::ProcessGroup::BackendType::GLOO, std::move(gloo));
  group->setDefaultBackend(c10d::ProcessGroup::BackendType::GLOO);
  return group;
}

HostsGroups join_hosts(const HostGrid& grid, const World& world, const StorePtr& store, const std::string& name,
                       bool deterministic_reduction, milliseconds timeout) {
  auto inside = join_host(grid, world, name, timeout);
  const int host = grid.host_of(world.rank);
  const auto column = [&](const char* what) {
    return make_gloo_group(store, fmt::format("column{}/{}", world.local_rank, what), host, grid.hosts, timeout);
  };
  HostsGroups joined{nullptr, column("data"), column("control")};
  joined.communicator = make_hosts_communicator(
      std::move(inside), make_c10d_communicator(joined.data, joined.control, c10::kCPU, true, timeout),
      deterministic_reduction);
  return joined;
}

}  // namespace zeropage::comm
