#include <pybind11/stl.h>
#include <torch/csrc/utils/pybind.h>

#include "python/bind/bind.h"
#include "zeropage/config/config.h"
#include "zeropage/engine/engine.h"
#include "zeropage/session/data_types.h"
#include "zeropage/session/losses.h"
#include "zeropage/session/memory_report.h"
#include "zeropage/session/preemption.h"
#include "zeropage/session/resume_check.h"
#include "zeropage/session/step_observer.h"

namespace zeropage::python {

void init_session(py::module_& module) {
  using session::StepObserver;
  using session::StepTimes;
  py::class_<StepTimes>(module, "StepTimes", "Seconds of an optimizer step, and of its parts by name.")
      .def_readonly("parts", &StepTimes::parts)
      .def_readonly("seconds", &StepTimes::seconds);
  py::class_<StepObserver>(module, "StepObserver",
                           "wall_clock_breakdown, memory_breakdown and the metrics file of one engine.")
      .def(py::init<const engine::Engine&, const config::Config&, int, int, c10::Device>(), py::arg("engine"),
           py::arg("config"), py::arg("rank"), py::arg("world_size"), py::arg("device"), py::keep_alive<1, 2>(),
           "Opens the metrics file on rank 0. Raises OSError.")
      .def_property_readonly("prints_times", &StepObserver::prints_times)
      .def_property_readonly("watches_phases", &StepObserver::watches_phases)
      .def_property_readonly("has_file", &StepObserver::has_file)
      .def("end_phase", &StepObserver::end_phase, py::arg("phase"), Unlocked(), "phase: forward, backward or step.")
      .def("end_step", &StepObserver::end_step, py::arg("loss"), py::arg("lr"),
           "After an optimizer step, applied or skipped; loss: None if unknown.")
      .def("monitored", &StepObserver::monitored, py::arg("loss"), py::arg("lr"), py::arg("times"),
           "The names and values of that step for monitors.")
      .def("close", &StepObserver::close, "Closes the file.");
  using session::DataTypes;
  py::class_<DataTypes>(module, "DataTypes", "The types of an engine's tensors by its configuration.")
      .def(py::init(&session::data_types), py::arg("config"))
      .def_readonly("parameters", &DataTypes::parameters)
      .def_readonly("accumulation", &DataTypes::accumulation)
      .def_readonly("communication", &DataTypes::communication)
      .def_readonly("autocast", &DataTypes::autocast, "Of the forward's operators; None: no autocast.")
      .def_readonly("buffers", &DataTypes::buffers, "Of floating-point buffers; None: their own.");
  py::class_<session::Losses>(module, "Losses", "The losses of an accumulation window.")
      .def(py::init())
      .def("add", &session::Losses::add, py::arg("loss"), py::arg("first"), "first: the first one of its window.")
      .def("mean", &session::Losses::mean, py::arg("engine"), Unlocked(),
           "This rank's mean since the last update, or None. engine: None if it has ended.");
  using session::BufferShapes;
  module.def(
      "resume_differences",
      [](BufferShapes buffers, BufferShapes stored_buffers, std::optional<std::string> optimizer,
         std::optional<std::string> stored_optimizer, std::size_t groups, std::size_t stored_groups, bool strict,
         bool with_optimizer, std::set<std::string> excluded) {
        return session::differences({std::move(buffers), std::move(optimizer), groups},
                                    {std::move(stored_buffers), std::move(stored_optimizer), stored_groups},
                                    {strict, with_optimizer, std::move(excluded)});
      },
      py::kw_only(), py::arg("buffers"), py::arg("stored_buffers"), py::arg("optimizer"), py::arg("stored_optimizer"),
      py::arg("groups"), py::arg("stored_groups"), py::arg("strict"), py::arg("with_optimizer"), py::arg("excluded"),
      "See session/resume_check.h. Buffers: name -> shape.");
  py::class_<session::Preemption>(module, "Preemption",
                                  "Watches for SIGTERM until it is deleted (zeropage.preemption_folder).")
      .def(py::init([](engine::Engine& engine, double grace_s) {
             return std::make_unique<session::Preemption>([&engine] { engine.request_stop(); }, grace_s);
           }),
           py::arg("engine"), py::arg("grace_s"), py::keep_alive<1, 2>(), "grace_s: seconds. Raises OSError.");
  module.def(
      "gather_memory",
      [](const engine::Engine& engine, comm::Communicator& communicator, std::array<std::int64_t, 2> client_state) {
        auto ranks = session::gather_memory(engine, communicator, client_state);
        return std::pair(std::move(ranks.device), std::move(ranks.host));
      },
      py::arg("engine"), py::arg("communicator"), py::arg("client_state"), Unlocked(),
      "Collective. Per rank, bytes of parameters, gradients, optimizer, frames (peak) and buffers: on the device, and "
      "of "
      "what is offloaded. client_state: bytes that an optimizer of PyTorch keeps, on the device and on the host.");
  module.def("process_bytes", &session::process_bytes, "Resident memory of this process, including shared memory.");
}

}  // namespace zeropage::python
