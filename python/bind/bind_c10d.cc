// In a file of its own: the header of process groups takes long to compile.
#include "zeropage/paging/torch_config.h"

#include <pybind11/stl.h>
#include <torch/csrc/utils/pybind.h>
#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>

#include "python/bind/bind.h"
#include "zeropage/comm/c10d_communicator.h"
#include "zeropage/comm/fault_communicator.h"

namespace zeropage::python {
namespace {

using ProcessGroupPtr = c10::intrusive_ptr<c10d::ProcessGroup>;

std::shared_ptr<comm::Communicator> make_c10d(ProcessGroupPtr data, ProcessGroupPtr control, c10::Device device,
                                              bool deterministic, std::int64_t timeout_ms, std::int64_t max_delay_us) {
  auto communicator = comm::make_c10d_communicator(std::move(data), std::move(control), device, deterministic,
                                                   std::chrono::milliseconds(timeout_ms));
  if (max_delay_us == 0) return communicator;
  const auto seed = static_cast<std::uint64_t>(communicator->rank());
  auto delays = comm::random_delays(seed, std::chrono::microseconds(max_delay_us));
  return comm::make_fault_communicator(std::move(communicator), std::move(delays));
}

}  // namespace

void init_c10d(py::module_& module) {
  module.def("make_c10d_communicator", &make_c10d, py::arg("data"), py::arg("control"), py::arg("device"),
             py::arg("deterministic"), py::arg("timeout_ms"), py::arg("max_delay_us") = 0, Unlocked(),
             "Ranks of two torch process groups of their own: one for buffers on `device`, one (gloo) for control. For "
             "tests each collective is delayed at random by up to max_delay_us.");
}

}  // namespace zeropage::python
