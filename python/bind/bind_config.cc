#include <pybind11/stl.h>

#include <cctype>
#include <string>
#include <vector>

#include "python/bind/bind.h"
#include "zeropage/config/config.h"
#include "zeropage/config/effective.h"
#include "zeropage/config/optimizers.h"
#include "zeropage/optim/schedule.h"

namespace zeropage::python {
namespace {

using config::Config;

void bind_enums(py::module_& module) {
  py::enum_<config::Precision>(module, "Precision")
      .value("FP32", config::Precision::kFp32)
      .value("BF16", config::Precision::kBf16)
      .value("FP16", config::Precision::kFp16);
  py::enum_<config::OptimizerKind> kinds(module, "OptimizerKind");
  kinds.value("NONE", config::OptimizerKind::kNone).value("TORCH", config::OptimizerKind::kClient);
  for (const auto& entry : config::optimizer_entries()) {
    std::string name = config::optimizer_name(entry.kind);
    for (char& letter : name) letter = static_cast<char>(std::toupper(static_cast<unsigned char>(letter)));
    kinds.value(name.c_str(), entry.kind);
  }
  py::enum_<config::ScheduleKind>(module, "ScheduleKind")
      .value("NONE", config::ScheduleKind::kNone)
      .value("WarmupLR", config::ScheduleKind::kWarmup)
      .value("WarmupDecayLR", config::ScheduleKind::kWarmupDecay)
      .value("WarmupCosineLR", config::ScheduleKind::kWarmupCosine)
      .value("OneCycle", config::ScheduleKind::kOneCycle)
      .value("LRRangeTest", config::ScheduleKind::kLrRangeTest);
  py::enum_<config::CommunicatorKind>(module, "CommunicatorKind")
      .value("AUTO", config::CommunicatorKind::kAuto)
      .value("SHARED_MEMORY", config::CommunicatorKind::kSharedMemory)
      .value("C10D", config::CommunicatorKind::kC10d)
      .value("MPI", config::CommunicatorKind::kMpi);
}

/// An attribute of a section, read-only in Python: `field<&Config::zero, &config::Zero::stage>`.
template <auto section, auto member>
auto field() {
  return [](const Config& config) { return (config.*section).*member; };
}

}  // namespace

void init_config(py::module_& module) {
  bind_enums(module);
  py::class_<config::OptimizerParams>(module, "OptimizerParams", "Hyperparameters of one parameter group.")
      .def(py::init<>())
      .def(py::init<const config::OptimizerParams&>())
      .def(
          "__getitem__",
          [](const config::OptimizerParams& params, const std::string& name) {
            return config::find_hyperparameter(name).get(params);
          },
          py::arg("name"), "By its name in torch.optim. Raises ConfigError for another name.")
      .def(
          "__setitem__",
          [](config::OptimizerParams& params, const std::string& name, const config::HyperparameterValue& value) {
            config::find_hyperparameter(name).set(params, value);
          },
          py::arg("name"), py::arg("value"));
  module.def("params_for_state", &config::params_for_state, py::arg("groups"),
             "The hyperparameters that determine the size and the initial values of the state. Raises ConfigError.");
  module.def("optimizer_name", &config::optimizer_name, py::arg("kind"), "\"adamw\"; empty for NONE and TORCH.");
  module.def(
      "hyperparameter_names",
      [](config::OptimizerKind kind) {
        std::vector<std::string> names;
        const auto* entry = config::find_optimizer(kind);
        if (entry == nullptr) return names;
        for (const auto& hyperparameter : entry->hyperparameters) names.emplace_back(hyperparameter.name);
        return names;
      },
      py::arg("kind"), "The hyperparameters of the optimizer, by their names in torch.optim; none for NONE and TORCH.");

  py::class_<Config>(module, "Config", "The typed configuration (see docs/config.md).")
      .def_static("from_json", &Config::from_json, py::arg("text"), py::arg("world_size"), py::arg("origin"),
                  "Parses JSON text, checks every key and resolves the batch rule. Raises ConfigError.")
      .def_static("from_file", &Config::from_file, py::arg("path"), py::arg("world_size"),
                  "The same for a file. Raises also IoError.")
      .def_static("notes", &config::notes, py::arg("text"), py::arg("origin"),
                  "Lines about effective values that differ from the document.")
      .def_static("notes_of_file", &config::notes_of_file, py::arg("path"))
      .def_property_readonly("train_batch_size", field<&Config::batch, &config::Batch::train_batch_size>())
      .def_property_readonly("micro_batch_size", field<&Config::batch, &config::Batch::micro_batch_size>())
      .def_property_readonly("accumulation_steps", field<&Config::batch, &config::Batch::accumulation_steps>())
      .def_readonly("precision", &Config::precision)
      .def_readonly("cast_inputs", &Config::cast_inputs)
      .def_property_readonly("dynamic_loss_scale", field<&Config::loss_scale, &config::LossScale::dynamic>())
      .def_property_readonly("gradient_clipping", field<&Config::gradients, &config::Gradients::clipping>())
      .def_property_readonly("computes_gradient_norm", field<&Config::gradients, &config::Gradients::norm>())
      .def_property_readonly("gradient_predivide_factor",
                             field<&Config::gradients, &config::Gradients::predivide_factor>())
      .def_property_readonly("prescale_gradients", field<&Config::gradients, &config::Gradients::prescale>())
      .def_property_readonly("stage", field<&Config::zero, &config::Zero::stage>())
      .def_property_readonly("gather_16bit_weights_on_model_save",
                             field<&Config::zero, &config::Zero::gather_16bit_weights_on_model_save>())
      .def_property_readonly("optimizer_kind", field<&Config::optimizer, &config::Optimizer::kind>())
      .def_property_readonly("optimizer_params", field<&Config::optimizer, &config::Optimizer::params>())
      .def_property_readonly(
          "optimizer_states",
          [](const Config& config) {
            const auto names = config::optimizer_state_names(config.optimizer.kind);
            return std::vector<std::string>(names.begin(),
                                            names.begin() + config::optimizer_state_count(config.optimizer));
          },
          "Names of the values per element that the engine keeps for the optimizer.")
      .def(
          "set_optimizer",
          [](Config& config, config::OptimizerKind kind, const config::OptimizerParams& params) {
            config.optimizer = {kind, params};
          },
          py::arg("kind"), py::arg("params"), "For an optimizer object that replaces the config's section.")
      .def_property(
          "schedule_kind", field<&Config::schedule, &config::Schedule::kind>(),
          [](Config& config, config::ScheduleKind kind) { config.schedule.kind = kind; },
          "Set when a scheduler object replaces the config's section.")
      .def_readonly("steps_per_print", &Config::steps_per_print)
      .def_readonly("allow_untested_optimizer", &Config::allow_untested_optimizer)
      .def_readonly("log_level", &Config::log_level)
      .def_readonly("disable_python_gc", &Config::disable_python_gc)
      .def_readonly("dump_state", &Config::dump_state)
      .def_readonly("dataloader_drop_last", &Config::dataloader_drop_last)
      .def_property_readonly("timeout_ms", field<&Config::zeropage, &config::ZeropageKeys::timeout_ms>())
      .def_property_readonly("communicator", field<&Config::zeropage, &config::ZeropageKeys::communicator>())
      .def_property_readonly(
          "parameters_on_disk",
          [](const Config& config) { return config.zero.offload.parameters == config::OffloadDevice::kNvme; })
      .def_property_readonly("async_save", field<&Config::zeropage, &config::ZeropageKeys::async_save>())
      .def_property_readonly("preemption_folder", field<&Config::zeropage, &config::ZeropageKeys::preemption_folder>())
      .def_property_readonly("preemption_grace_s",
                             field<&Config::zeropage, &config::ZeropageKeys::preemption_grace_s>())
      .def_property_readonly("shard_ranks", field<&Config::zero, &config::Zero::shard_ranks>())
      .def_property_readonly("second_shard_ranks", field<&Config::zero, &config::Zero::second_shard_ranks>())
      .def_property_readonly("hierarchical_collectives",
                             field<&Config::zeropage, &config::ZeropageKeys::hierarchical_collectives>())
      .def_property_readonly("deterministic_reduction",
                             field<&Config::zeropage, &config::ZeropageKeys::deterministic_reduction>())
      .def_readonly("automatic", &Config::automatic, "Keys that are \"auto\" until with_planned sets them.")
      .def_readonly("effective_json", &Config::effective_json, "Every key with its effective value.");

  using optim::LrSchedule;
  py::class_<LrSchedule>(module, "LrSchedule", "A learning-rate schedule, for programs that step it themselves.")
      .def(py::init([](const Config& config, std::vector<double> base_lrs) {
             return LrSchedule(config.schedule, std::move(base_lrs));
           }),
           py::arg("config"), py::arg("base_lrs"),
           "base_lrs: each group's rate without a schedule. Raises ConfigError.")
      .def_property("last_batch_iteration", &LrSchedule::last_batch_iteration, &LrSchedule::set_last_batch_iteration)
      .def_property_readonly("rates", &LrSchedule::lrs, "Learning rates of the next step, one per group.")
      .def_property_readonly("momenta", &LrSchedule::momenta, "beta1 of the next step, one per group, or None.");
}

}  // namespace zeropage::python
