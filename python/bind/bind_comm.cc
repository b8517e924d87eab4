#include "zeropage/memory/torch_config.h"
// Included here: the casters of tensors need torch's configuration.
#include <ATen/ops/empty.h>
#include <pybind11/stl.h>
#include <torch/csrc/utils/pybind.h>

#include "python/bind/bind.h"
#include "zeropage/comm/aborts.h"
#include "zeropage/comm/hosts/group_communicator.h"
#include "zeropage/comm/nearby_communicator.h"
#include "zeropage/comm/shm/shared_memory_communicator.h"
#include "zeropage/comm/testing/fault_communicator.h"
#include "zeropage/comm/thread_communicator.h"
#ifndef ZEROPAGE_WHEEL
#include "zeropage/comm/testing/communicator_conformance.h"
#endif

namespace zeropage::python {
namespace {

using comm::Communicator;
using CommunicatorPtr = std::shared_ptr<Communicator>;
using std::chrono::milliseconds;

std::vector<CommunicatorPtr> make_thread_communicators(int size, std::int64_t timeout_ms, bool two_sided,
                                                       std::int64_t max_delay_us) {
  std::vector<CommunicatorPtr> out;
  for (auto& communicator : comm::make_thread_communicators(size, milliseconds(timeout_ms))) {
    if (two_sided || max_delay_us > 0) {
      auto delays = comm::random_delays(out.size(), std::chrono::microseconds(max_delay_us));
      out.push_back(comm::make_fault_communicator(std::move(communicator), std::move(delays), two_sided));
    } else {
      out.push_back(std::move(communicator));
    }
  }
  return out;
}

std::vector<CommunicatorPtr> make_thread_groups(int groups, int count, std::int64_t timeout_ms) {
  auto made = comm::make_thread_groups(groups, count, milliseconds(timeout_ms));
  return {std::make_move_iterator(made.begin()), std::make_move_iterator(made.end())};
}

CommunicatorPtr join_shared_memory(const std::string& name, int rank, int size, std::int64_t timeout_ms,
                                   std::shared_ptr<comm::Aborts> aborts) {
  return comm::join_shared_memory(name, rank, size, milliseconds(timeout_ms), std::move(aborts));
}

at::Tensor all_gather(Communicator& communicator, const at::Tensor& shard) {
  at::Tensor whole = at::empty({communicator.size() * shard.numel()}, shard.options());
  communicator
      .all_gather(shard.data_ptr(), whole.data_ptr(), static_cast<std::int64_t>(shard.nbytes()), {"all_gather"})
      ->wait();
  return whole;
}

at::Tensor reduce_scatter(Communicator& communicator, const at::Tensor& whole) {
  const std::int64_t shard_numel = whole.numel() / communicator.size();
  at::Tensor out = at::empty({shard_numel}, whole.options());
  const DType dtype = dtype_of(whole.scalar_type());
  communicator
      .reduce_scatter(whole.data_ptr(), out.data_ptr(), shard_numel, dtype, dtype, false, {"reduce_scatter"}, {})
      ->wait();
  return out;
}

void broadcast(Communicator& communicator, at::Tensor tensor, int root) {
  communicator.broadcast(tensor.data_ptr(), static_cast<std::int64_t>(tensor.nbytes()), root, {"broadcast"})->wait();
}

py::bytes gather_bytes(Communicator& communicator, const std::string& mine) {
  std::string all;
  {
    py::gil_scoped_release unlocked;
    all = comm::all_gather_small(communicator, mine, {"all_gather_small"});
  }
  return py::bytes(all);
}

}  // namespace

void init_comm(py::module_& module) {
  py::class_<comm::Aborts, std::shared_ptr<comm::Aborts>>(
      module, "Aborts", "The first reason for which communicators have aborted that abort together.");
  py::class_<Communicator, CommunicatorPtr>(module, "Communicator",
                                            "One rank's connection to all ranks of a job, or to a group of them.")
      .def_property_readonly("rank", &Communicator::rank)
      .def_property_readonly("size", &Communicator::size)
      .def_property_readonly(
          "job", [](const CommunicatorPtr& self) { return CommunicatorPtr(self, &self->job()); },
          "All ranks of the job; itself, unless it has one group of them (zeropage.shard_ranks).")
      .def_property_readonly("one_sided", &Communicator::one_sided,
                             "True when peers' memory can be read without any action of theirs.")
      .def(
          "barrier", [](Communicator& communicator) { communicator.barrier({"barrier"}); }, Unlocked(),
          "Returns when every rank has called it. Raises PeerError, TimeoutError.")
      .def("abort", &Communicator::abort, py::arg("reason"), Unlocked(),
           "Makes every current and future wait of every rank fail with PeerError.")
      .def("all_gather_small", &gather_bytes, py::arg("mine"), "The bytes of every rank, in the order of ranks.")
      .def("all_gather", &all_gather, py::arg("shard"), Unlocked(), "Every rank's shard, in the order of ranks.")
      .def("reduce_scatter", &reduce_scatter, py::arg("whole"), Unlocked(), "This rank's part of the sum over ranks.")
      .def("broadcast", &broadcast, py::arg("tensor"), py::arg("root"), Unlocked(),
           "Gives every rank the root's values. tensor: contiguous.")
      .def_property_readonly("bytes_moved", &Communicator::bytes_moved, "Bytes this rank has sent to others.")
      .def_property_readonly(
          "bytes_between_hosts", &Communicator::bytes_between_hosts,
          "The part of them that was sent between hosts; 0 for a communicator that does not know the hosts.");

  module.def(
      "make_thread_communicators", &make_thread_communicators, py::arg("size"), py::arg("timeout_ms"),
      py::arg("two_sided") = false, py::arg("max_delay_us") = 0,
      "Ranks as threads of this process: one communicator for each. For tests of other transports: two_sided hides "
      "peers' memory, and each collective is delayed at random by up to max_delay_us.");
  module.def("make_thread_groups", &make_thread_groups, py::arg("groups"), py::arg("count"), py::arg("timeout_ms"),
             "The same for ranks in groups of `count` (zeropage.shard_ranks).");
  module.def(
      "join_shared_groups",
      [](const std::string& name, int rank, int local_rank, int size, int local_size, std::int64_t count,
         bool deterministic, std::int64_t timeout_ms, const std::shared_ptr<comm::Aborts>& aborts) -> CommunicatorPtr {
        return comm::join_shared_groups(name, {rank, local_rank, size, local_size}, count, deterministic,
                                        milliseconds(timeout_ms), aborts);
      },
      py::arg("name"), py::arg("rank"), py::arg("local_rank"), py::arg("size"), py::arg("local_size"), py::arg("count"),
      py::arg("deterministic"), py::arg("timeout_ms"), py::arg("aborts"), Unlocked(),
      "CPU ranks of one host in groups of `count`; all call with the same name. Collective. Raises ConfigError.");
  module.def("join_shared_memory", &join_shared_memory, py::arg("name"), py::arg("rank"), py::arg("size"),
             py::arg("timeout_ms"), py::arg("aborts") = py::none(), Unlocked(),
             "Ranks as processes of one host; all call with the same name. Communicators with the same `aborts` abort "
             "together.");
  module.def("aborts_of", &comm::aborts_of, py::arg("all"),
             "For communicators that are used beside this one of all ranks, and abort together with it.");
  module.def(
      "join_shared_aborts",
      [](const std::string& name, int rank, int size, std::int64_t timeout_ms) {
        return comm::join_shared_aborts(name, {rank, rank, size, size}, milliseconds(timeout_ms));
      },
      py::arg("name"), py::arg("rank"), py::arg("size"), py::arg("timeout_ms"), Unlocked(),
      "Communicators of the ranks of one host with this one abort together. Collective.");
  module.def(
      "check_nearby",
      [](int rank, int local_rank, int size, int local_size, std::int64_t count) {
        comm::check_nearby({rank, local_rank, size, local_size}, count);
      },
      py::arg("rank"), py::arg("local_rank"), py::arg("size"), py::arg("local_size"), py::arg("count"),
      "Raises ConfigError unless the ranks of this host can form groups of `count`.");
  module.def(
      "join_nearby",
      [](CommunicatorPtr all, int rank, int local_rank, int size, int local_size, std::int64_t count,
         const std::string& name) {
        return comm::join_nearby(std::move(all), {rank, local_rank, size, local_size}, count, name);
      },
      py::arg("all"), py::arg("rank"), py::arg("local_rank"), py::arg("size"), py::arg("local_size"), py::arg("count"),
      py::arg("name"), Unlocked(),
      "`all` with groups of `count` nearby CPU ranks, whose shared memory has this name. Collective.");
  module.def("with_nearby", &comm::with_nearby, py::arg("all"), py::arg("nearby"),
             "`all` with the group of nearby ranks that this rank belongs to.");
#ifndef ZEROPAGE_WHEEL  // only tests of the checkout run it
  module.def("run_conformance", &comm::run_conformance, py::arg("communicator"), Unlocked(),
             "Runs the conformance suite of communicators; raises on the first difference. Collective.");
#endif
}

}  // namespace zeropage::python
