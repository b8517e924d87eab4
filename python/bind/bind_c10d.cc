// A separate file, because the header of process groups takes long to compile.
#include "zeropage/memory/torch_config.h"

#include <pybind11/stl.h>

#include <array>
#include <tuple>

#include <torch/csrc/utils/pybind.h>
#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>

#include "python/bind/bind.h"
#include "zeropage/comm/c10d/c10d_aborts.h"
#include "zeropage/comm/c10d/c10d_communicator.h"
#include "zeropage/comm/c10d/c10d_hosts.h"
#include "zeropage/comm/c10d/c10d_one_rank.h"
#include "zeropage/comm/c10d/c10d_store.h"
#include "zeropage/comm/testing/fault_communicator.h"
#include "zeropage/comm/world.h"
#include "zeropage/config/config.h"

namespace zeropage::python {
namespace {

using ProcessGroupPtr = c10::intrusive_ptr<c10d::ProcessGroup>;

std::shared_ptr<comm::Communicator> make_c10d(ProcessGroupPtr data, ProcessGroupPtr control, c10::Device device,
                                              bool deterministic, std::int64_t timeout_ms, std::int64_t max_delay_us,
                                              std::shared_ptr<comm::Aborts> aborts) {
  auto communicator = comm::make_c10d_communicator(std::move(data), std::move(control), device, deterministic,
                                                   std::chrono::milliseconds(timeout_ms), std::move(aborts));
  if (max_delay_us == 0) return communicator;
  const auto seed = static_cast<std::uint64_t>(communicator->rank());
  auto delays = comm::random_delays(seed, std::chrono::microseconds(max_delay_us));
  return comm::make_fault_communicator(std::move(communicator), std::move(delays));
}

std::shared_ptr<comm::Communicator> make_groups(const std::array<ProcessGroupPtr, 4>& groups, c10::Device device,
                                                bool deterministic, std::int64_t timeout_ms,
                                                std::shared_ptr<comm::Aborts> aborts) {
  return comm::make_c10d_groups({groups[0], groups[1]}, {groups[2], groups[3]}, device, deterministic,
                                std::chrono::milliseconds(timeout_ms), std::move(aborts));
}

/// Refers to a communicator without owning it.
struct Watch {
  std::weak_ptr<comm::Communicator> watched;
};

const char* environment(const char* name) { return std::getenv(name); }

c10::intrusive_ptr<c10d::Store> job_store(int rank, int local_rank, int size, int local_size, std::int64_t timeout_ms) {
  const comm::World world{rank, local_rank, size, local_size};
  return comm::job_store(world, comm::meeting_from_environment(&environment, world),
                         comm::token_from_environment(&environment), std::chrono::milliseconds(timeout_ms));
}

py::tuple agree_on_hosts(const c10::intrusive_ptr<c10d::Store>& store, int rank, int local_rank, int size,
                         int local_size) {
  comm::HostGrid grid;
  {
    py::gil_scoped_release unlocked;
    grid = comm::agree_on_hosts(*store, {rank, local_rank, size, local_size});
  }
  return py::make_tuple(grid.hosts, grid.local_size);
}

using JoinedHosts = std::tuple<std::shared_ptr<comm::Communicator>, ProcessGroupPtr, ProcessGroupPtr>;

JoinedHosts join_hosts(const c10::intrusive_ptr<c10d::Store>& store, int rank, int size, int local_size,
                       const std::string& name, bool deterministic, std::int64_t timeout_ms,
                       std::shared_ptr<comm::Aborts> aborts) {
  const comm::HostGrid grid{size / local_size, local_size};
  auto joined = comm::join_hosts(grid, {rank, grid.local_of(rank), size, local_size}, store, name, deterministic,
                                 std::chrono::milliseconds(timeout_ms), std::move(aborts));
  return {std::move(joined.communicator), std::move(joined.data), std::move(joined.control)};
}

JoinedHosts join_groups(const c10::intrusive_ptr<c10d::Store>& store, int rank, int local_rank, int size,
                        int local_size, std::int64_t count, const std::string& name, bool deterministic,
                        std::int64_t timeout_ms, std::shared_ptr<comm::Aborts> aborts) {
  auto joined = comm::join_groups({rank, local_rank, size, local_size}, count, store, name, deterministic,
                                  std::chrono::milliseconds(timeout_ms), std::move(aborts));
  return {std::move(joined.communicator), std::move(joined.data), std::move(joined.control)};
}

py::tuple world_from_environment() {
  const comm::World world = comm::world_from_environment(&environment);
  return py::make_tuple(world.rank, world.local_rank, world.size, world.local_size);
}

}  // namespace

void init_c10d(py::module_& module) {
  module.def("world_from_environment", &world_from_environment,
             "Rank, local rank, size and local size, from the variables that the launcher set. Raises ConfigError.");
  module.def(
      "segment_name", [](std::int64_t number) { return comm::segment_name(&environment, number); }, py::arg("number"),
      "The name of the shared memory of this job's ranks; number: which communicator of the job.");
  module.def("job_store", &job_store, py::arg("rank"), py::arg("local_rank"), py::arg("size"), py::arg("local_size"),
             py::arg("timeout_ms"), Unlocked(),
             "The store of torch.distributed through which the ranks of this job find each other, made at the first "
             "call, which is collective. Raises ConfigError, OSError, PeerError, TimeoutError.");
  module.attr("default_timeout_ms") = config::ZeropageKeys().timeout_ms;
  module.def(
      "make_one_rank_communicator",
      [](c10::Device device, std::int64_t timeout_ms) -> std::shared_ptr<comm::Communicator> {
        return comm::make_one_rank_communicator(device, std::chrono::milliseconds(timeout_ms));
      },
      py::arg("device"), py::arg("timeout_ms"), "A job of one rank on `device`, without process groups.");
  py::class_<Watch>(module, "CommunicatorWatch", "Tells whether a communicator still exists, without owning it.")
      .def(py::init([](const std::shared_ptr<comm::Communicator>& watched) { return Watch{watched}; }))
      .def_property_readonly("is_over", [](const Watch& watch) { return watch.watched.expired(); });
  module.def(
      "store_of", [](const ProcessGroupPtr& group) { return group->getStore(); }, py::arg("group"),
      "The store of a process group.");
  module.def("agree_on_hosts", &agree_on_hosts, py::arg("store"), py::arg("rank"), py::arg("local_rank"),
             py::arg("size"), py::arg("local_size"),
             "How many hosts there are and how many ranks each has, where collectives by hosts are possible; else one "
             "host with all ranks. Collective; nothing else may write into the store.");
  module.def("store_aborts", &comm::store_aborts, py::arg("store"),
             "Communicators with this one abort together, through a store; None without a store.");
  module.def("join_hosts", &join_hosts, py::arg("store"), py::arg("rank"), py::arg("size"), py::arg("local_size"),
             py::arg("name"), py::arg("deterministic"), py::arg("timeout_ms"), py::arg("aborts") = py::none(),
             Unlocked(),
             "CPU ranks of several hosts: their communicator, and the two process groups of this rank's column, which "
             "it uses. name: of shared memory that only this job uses. Communicators with the same `aborts` abort "
             "together. Collective; nobody else writes into the store.");
  module.def("join_groups", &join_groups, py::arg("store"), py::arg("rank"), py::arg("local_rank"), py::arg("size"),
             py::arg("local_size"), py::arg("count"), py::arg("name"), py::arg("deterministic"), py::arg("timeout_ms"),
             py::arg("aborts") = py::none(), Unlocked(),
             "The same for CPU ranks in groups of `count` on each host (zeropage.shard_ranks). Raises ConfigError.");
  module.def("make_c10d_communicator", &make_c10d, py::arg("data"), py::arg("control"), py::arg("device"),
             py::arg("deterministic"), py::arg("timeout_ms"), py::arg("max_delay_us") = 0,
             py::arg("aborts") = py::none(), Unlocked(),
             "Ranks of two dedicated torch process groups: one for buffers on `device`, one (gloo) for control. For "
             "tests each collective is delayed at random by up to max_delay_us. Communicators with the same "
             "`aborts` abort together.");
  module.def("make_c10d_groups", &make_groups, py::arg("groups"), py::arg("device"), py::arg("deterministic"),
             py::arg("timeout_ms"), py::arg("aborts") = py::none(), Unlocked(),
             "Ranks on `device` in groups (zeropage.shard_ranks). groups: data and control of this rank's group, then "
             "those of the ranks with its place in each group. Communicators with the same `aborts` abort together.");
}

}  // namespace zeropage::python
