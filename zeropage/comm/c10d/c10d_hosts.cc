#include "zeropage/comm/c10d/c10d_hosts.h"

#include <fmt/format.h>

#include <algorithm>
#include <string_view>
#include <utility>
#include <vector>

// torch's headers last, because they define macros.
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>

#include "zeropage/base/error.h"
#include "zeropage/base/log.h"
#include "zeropage/comm/c10d/c10d_aborts.h"
#include "zeropage/comm/c10d/c10d_communicator.h"
#include "zeropage/comm/hosts/group_communicator.h"
#include "zeropage/comm/hosts/hosts_communicator.h"
#include "zeropage/comm/hosts/hosts_queue.h"
#include "zeropage/comm/shm/shared_memory_communicator.h"

namespace zeropage::comm {
namespace {

using std::chrono::milliseconds;
using GroupPtr = c10::intrusive_ptr<c10d::ProcessGroup>;
using StorePtr = c10::intrusive_ptr<c10d::Store>;

/// Shared memory of the ranks of one host, or of one group. `unit`: "host" or "group".
std::unique_ptr<Communicator> join_inside(const HostGrid& grid, int rank, const char* unit, const std::string& name,
                                          milliseconds timeout, const std::shared_ptr<Aborts>& aborts) {
  const int host = grid.host_of(rank);
  // Tests have several hosts on one machine.
  const std::string own_name = fmt::format("{}-{}{}", name, unit, host);
  const auto failed = [&](const std::exception& error) {
    const bool has_other_way = unit == std::string_view("host");
    return fmt::format("the ranks of {} {} cannot share memory: {}{}", unit, host, error.what(),
                       has_other_way ? "; zeropage.hierarchical_collectives false does without" : "");
  };
  try {
    return join_shared_memory(own_name, grid.local_of(rank), grid.local_size, timeout,
                              aborts_of_side(aborts, Side::kInside, grid, rank, unit));
  } catch (const TimeoutError& error) {
    throw TimeoutError(failed(error));
  } catch (const IoError& error) {
    throw IoError(failed(error));
  }
}

struct Column {
  std::unique_ptr<Communicator> communicator;
  GroupPtr data;
  GroupPtr control;
};

/// The ranks with this rank's place on their hosts, or in their groups.
Column join_column(const HostGrid& grid, int rank, const char* unit, const StorePtr& store, milliseconds timeout,
                   const std::shared_ptr<Aborts>& aborts) {
  const auto group = [&](const char* what) {
    return make_gloo_group(store, fmt::format("column{}/{}", grid.local_of(rank), what), grid.host_of(rank), grid.hosts,
                           timeout);
  };
  Column column{nullptr, group("data"), group("control")};
  column.communicator = make_c10d_communicator(column.data, column.control, c10::kCPU, true, timeout,
                                               aborts_of_side(aborts, Side::kBetween, grid, rank, unit));
  return column;
}

/// Those of this communicator alone, if it shares none.
std::shared_ptr<Aborts> or_own(std::shared_ptr<Aborts> aborts, const StorePtr& store) {
  return aborts ? std::move(aborts) : store_aborts(c10::make_intrusive<c10d::PrefixStore>("aborts", store));
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
                       bool deterministic_reduction, milliseconds timeout, std::shared_ptr<Aborts> aborts) {
  aborts = or_own(std::move(aborts), store);
  auto inside = join_inside(grid, world.rank, "host", name, timeout, aborts);
  auto column = join_column(grid, world.rank, "host", store, timeout, aborts);
  return {make_hosts_communicator(std::move(inside), std::move(column.communicator), deterministic_reduction,
                                  std::move(aborts)),
          std::move(column.data), std::move(column.control)};
}

HostsGroups join_groups(const World& world, std::int64_t count, const StorePtr& store, const std::string& name,
                        bool deterministic_reduction, milliseconds timeout, std::shared_ptr<Aborts> aborts) {
  check_groups(world, count);
  const HostGrid grid{world.size / static_cast<int>(count), static_cast<int>(count)};
  aborts = or_own(std::move(aborts), store);
  auto inside = join_inside(grid, world.rank, "group", name, timeout, aborts);
  auto column = join_column(grid, world.rank, "group", store, timeout, aborts);
  return {make_group_communicator(std::move(inside), std::move(column.communicator), deterministic_reduction,
                                  std::move(aborts)),
          std::move(column.data), std::move(column.control)};
}

}  // namespace zeropage::comm
