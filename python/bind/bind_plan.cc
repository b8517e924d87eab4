#include <pybind11/stl.h>
#include <torch/csrc/utils/pybind.h>

#include <algorithm>
#include <tuple>

#include "python/bind/bind.h"
#include "zeropage/comm/measure_links.h"
#include "zeropage/engine/automatic.h"
#include "zeropage/io/measure_store.h"
#include "zeropage/planner/make_plan.h"

namespace zeropage::python {
namespace {

std::pair<std::string, std::string> make_plan(planner::Model model, const PlanOptions& options) {
  const planner::Plan made = planner::make_plan(planner::request_of(std::move(model), options));
  return {planner::plan_json(made), planner::format_plan(made)};
}

config::Config choose_automatic(const config::Config& config, const std::vector<std::int64_t>& numels,
                                const std::vector<bool>& trainable, const formula::FreeMemory& memory,
                                comm::Communicator& communicator) {
  engine::ModelCounts counts;
  for (std::size_t i = 0; i < numels.size(); ++i) {
    (trainable[i] ? counts.trainable_numel : counts.frozen_numel) += numels[i];
    counts.largest_numel = std::max(counts.largest_numel, numels[i]);
  }
  return engine::choose_automatic(config, counts, memory, communicator);
}

/// Bytes per second that a drive reads and writes in the pattern of a training step.
std::pair<double, double> measure_drive(const std::string& folder) {
  constexpr int kExtents = 16;
  io::MeasuredStore store({.folders = {folder}, .owner = "measure"}, kExtents);
  const double write = store.run(io::Traffic::kWrite).gb_per_s();
  return {1e9 * store.run(io::Traffic::kRead).gb_per_s(), 1e9 * write};
}

/// Bytes per second of gathering and of reducing, and seconds of a hop.
std::tuple<double, double, double> measure_links(comm::Communicator& communicator, std::int64_t page_bytes,
                                                 double seconds) {
  const auto figures = comm::measure_links(communicator, page_bytes, seconds);
  return {figures.gather_rate, figures.reduce_rate, figures.hop_s};
}

}  // namespace

void init_plan(py::module_& module) {
  py::class_<planner::Model>(module, "PlanModel", "The model that a plan is for.")
      .def_static("read", &planner::read_model, py::arg("source"),
                  "A count (7B), a safetensors file or index, a config.json. Raises ConfigError, IoError.")
      .def_static(
          "of_parameters", &planner::model_of_parameters, py::arg("name"), py::arg("numels"), py::arg("trainable"),
          py::arg("muon"),
          "Elements of each parameter, whether it is trained, and whether Muon updates it. Raises ConfigError.");
  module.def("takes_muon", &planner::takes_muon, py::arg("name"), py::arg("dimensions"),
             "Whether Muon updates a parameter without a use_muon attribute.");
  py::class_<formula::FreeMemory>(module, "FreeMemory", "Memory that one rank can still allocate.")
      .def(py::init<std::int64_t, std::int64_t, bool>(), py::arg("device_bytes"), py::arg("host_bytes"),
           py::arg("device_is_host"))
      .def_readonly("device_bytes", &formula::FreeMemory::device_bytes)
      .def_readonly("host_bytes", &formula::FreeMemory::host_bytes);
  module.def("free_memory", &engine::free_memory, py::arg("device"), py::arg("ranks_of_host"),
             "Of the device, and this rank's part of the host's. Raises IoError.");
  module.def("choose_automatic", &choose_automatic, py::arg("config"), py::arg("numels"), py::arg("trainable"),
             py::arg("memory"), py::arg("communicator"), py::call_guard<py::gil_scoped_release>(),
             "The configuration with values for every \"auto\"; rank 0 logs the values and the reasons. Collective.");
  module.def("measure_drive", &measure_drive, py::arg("folder"), py::call_guard<py::gil_scoped_release>(),
             "Bytes per second read and written; uses half a GiB there meanwhile. Raises IoError.");
  module.def("measure_links", &measure_links, py::arg("communicator"), py::arg("page_bytes"), py::arg("seconds"),
             py::call_guard<py::gil_scoped_release>(),
             "Bytes per second of gathering and of reducing pages, and seconds of a hop. Collective.");
  module.def("data_sheet_flops", &planner::data_sheet_flops,
             "Dense 16-bit operations per second of known devices, by name.");
  py::class_<PlanOptions>(module, "PlanOptions", "The machine and the training of a plan.")
      .def(py::init<>())
      .def_readwrite("num_gpus", &PlanOptions::num_gpus)
      .def_readwrite("num_nodes", &PlanOptions::num_nodes)
      .def_readwrite("device", &PlanOptions::device)
      .def_readwrite("figures", &PlanOptions::figures)
      .def_readwrite("optimizer", &PlanOptions::optimizer)
      .def_readwrite("optimizer_bytes", &PlanOptions::optimizer_bytes)
      .def_readwrite("precision", &PlanOptions::precision)
      .def_readwrite("micro_batch", &PlanOptions::micro_batch)
      .def_readwrite("accumulation_steps", &PlanOptions::accumulation_steps)
      .def_readwrite("sequence", &PlanOptions::sequence)
      .def_readwrite("quantized_weights", &PlanOptions::quantized_weights)
      .def_readwrite("quantized_gradients", &PlanOptions::quantized_gradients)
      .def_readwrite("hpz_partition_size", &PlanOptions::hpz_partition_size)
      .def_readwrite("shard_ranks", &PlanOptions::shard_ranks);
  module.def("make_plan", &make_plan, py::arg("model"), py::arg("options"),
             "The plan as JSON and as text. Raises ConfigError, IoError.");
}

}  // namespace zeropage::python
