#include <pybind11/stl.h>

#include <map>

#include "python/bind/bind.h"
#include "zeropage/plan/auto_stage.h"
#include "zeropage/plan/plan.h"

namespace zeropage::python {
namespace {

std::pair<std::string, std::string> make_plan(plan::Model model, int num_gpus, int num_nodes, const std::string& device,
                                              const std::map<std::string, std::string>& figures,
                                              const std::string& precision, std::int64_t micro_batch,
                                              std::int64_t accumulation_steps, std::int64_t sequence) {
  plan::Request request;
  request.model = std::move(model);
  request.devices_per_host = num_gpus;
  request.hosts = num_nodes;
  if (!device.empty()) request.hardware = plan::hardware_preset(device);
  for (const auto& [name, value] : figures) plan::set_figure(request.hardware.value(), name, value);
  request.precision = plan::parse_precision(precision);
  request.micro_batch = micro_batch;
  request.accumulation_steps = accumulation_steps;
  request.sequence = sequence;
  const plan::Plan made = plan::make_plan(request);
  return {plan::plan_json(made), plan::format_plan(made)};
}

std::pair<int, std::string> choose_stage(const config::Config& config, int world_size, std::int64_t trainable_numel,
                                         std::int64_t frozen_numel, std::int64_t free_bytes) {
  const auto options = plan::StateOptions::from_config(config, world_size);
  const plan::AutoStage choice = plan::choose_stage({trainable_numel, frozen_numel, 0}, options, free_bytes);
  return {choice.stage, choice.reason};
}

}  // namespace

void init_plan(py::module_& module) {
  py::class_<plan::Model>(module, "PlanModel", "The model that is planned for.")
      .def_static("read", &plan::read_model, py::arg("source"),
                  "A count (7B), a safetensors file or index, a config.json. Raises ConfigError, IoError.")
      .def_static("of_parameters", &plan::model_of_parameters, py::arg("name"), py::arg("numels"), py::arg("trainable"),
                  "Elements of each parameter, and whether it is trained. Raises ConfigError.");
  module.def("choose_stage", &choose_stage, py::arg("config"), py::arg("world_size"), py::arg("trainable_numel"),
             py::arg("frozen_numel"), py::arg("free_bytes"), "Stage and reason for \"stage\": \"auto\".");
  module.def("data_sheet_flops", &plan::data_sheet_flops,
             "Dense 16-bit operations per second of known devices, by name.");
  module.def("make_plan", &make_plan, py::arg("model"), py::arg("num_gpus"), py::arg("num_nodes"), py::arg("device"),
             py::arg("figures"), py::arg("precision"), py::arg("micro_batch"), py::arg("accumulation_steps"),
             py::arg("sequence"), "The plan as JSON and as text. Figures need a device. Raises ConfigError.");
}

}  // namespace zeropage::python
