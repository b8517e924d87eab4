#include "zeropage/engine/checkpoint.h"

// Included here: the casters of tensors need torch's configuration.
#include <pybind11/functional.h>
#include <pybind11/stl.h>
#include <torch/csrc/utils/pybind.h>

#include "python/bind/bind.h"
#include "zeropage/checkpoint/model_file.h"
#include "zeropage/checkpoint/optimizer_state.h"
#include "zeropage/checkpoint/save.h"
#include "zeropage/checkpoint/steps.h"
#include "zeropage/engine/engine.h"
#include "zeropage/engine/imported_checkpoint.h"
#include "zeropage/engine/model_file.h"
#include "zeropage/report/save_progress.h"

namespace zeropage::python {
namespace {

using checkpoint::Checkpoint;
using engine::Engine;

std::unique_ptr<Checkpoint> open_checkpoint(const std::string& path) {
  return std::make_unique<Checkpoint>(checkpoint::system_files(), path);
}

/// (kind, parameter, first element, values)
using CallerStateTuple = std::tuple<std::string, int, std::int64_t, at::Tensor>;

std::string save_checkpoint(Engine& engine, std::string folder, std::string tag, bool latest, bool exclude_frozen,
                            std::map<std::string, std::vector<std::string>> aliases, std::string host_json,
                            std::map<std::string, at::Tensor> host_tensors,
                            std::vector<CallerStateTuple> caller_state) {
  std::vector<engine::CallerState> states;
  for (auto& [kind, parameter, offset, values] : caller_state) {
    states.push_back({std::move(kind), parameter, offset, std::move(values)});
  }
  auto progress = engine.communicator().job().rank() == 0 ? report::SaveProgress::on_stderr(tag) : nullptr;
  return engine.save_checkpoint({std::move(folder), std::move(tag), latest, exclude_frozen, std::move(aliases),
                                 std::move(host_json), std::move(host_tensors), std::move(states),
                                 std::move(progress)});
}

std::vector<std::string> export_model(Checkpoint& step, std::string folder, std::int64_t max_file_bytes,
                                      bool exclude_frozen) {
  return checkpoint::export_model(checkpoint::system_files(), step,
                                  {std::move(folder), "F32", max_file_bytes, exclude_frozen});
}

/// The model's tensors in a step, for programs that need nothing else of it.
void bind_model_files(py::module_& module) {
  using checkpoint::ModelTensor;
  py::class_<ModelTensor>(module, "ModelTensor", "A parameter or buffer in a step.")
      .def_readonly("name", &ModelTensor::name)
      .def_readonly("aliases", &ModelTensor::aliases)
      .def_readonly("shape", &ModelTensor::shape)
      .def_readonly("order", &ModelTensor::order, "The dimensions as they are stored; empty: row-major.")
      .def_readonly("stored", &ModelTensor::stored, "The name of the most precise tensor that holds it.")
      .def_readonly("trainable", &ModelTensor::trainable);
  module.def("model_tensors", &checkpoint::model_tensors, py::arg("step"), "Parameters, then buffers.");
  module.def("export_model", &export_model, py::arg("step"), py::arg("folder"), py::arg("max_file_bytes"),
             py::arg("exclude_frozen"), Unlocked(), "Writes fp32 safetensors; returns the files' paths.");
  module.def("save_model_file", &engine::save_model_file, py::arg("engine"), py::arg("communicator"), py::arg("path"),
             py::arg("tensors"), Unlocked(), "Collective; writes (name, tensor) pairs as one safetensors file.");
  module.def(
      "choose_step",
      [](const std::string& folder, const std::optional<std::string>& tag) {
        return checkpoint::choose_step(checkpoint::system_files(), folder, tag);
      },
      py::arg("folder"), py::arg("tag"), Unlocked(), "The path of the tagged or the newest step, or None.");
  module.def("check_tag", &checkpoint::check_tag, py::arg("tag"),
             "Raises UsageError for a tag that cannot name a step.");
  module.def(
      "finish_save", [](Engine& engine) { engine.finish_save(); }, py::arg("engine"), Unlocked(),
      "Returns when no save is under way. Raises its CheckpointError.");
  module.def(
      "check_save", [](Engine& engine) { engine.check_save(); }, py::arg("engine"), Unlocked(),
      "Raises the CheckpointError of a save that the ranks have seen fail.");
  module.def(
      "stop_agreed", [](Engine& engine) { return engine.stop_agreed(); }, py::arg("engine"),
      "Whether some rank had been asked to stop at the last boundary step.");
}

/// form, key, the name of the tensor or None, then the count of updates
using StateTuple = std::tuple<std::string, std::string, std::optional<std::string>, std::optional<std::int64_t>>;

std::vector<StateTuple> states_for_object(const checkpoint::SavedOptimizerStates& saved, const std::string& parameter,
                                          bool is_torchs) {
  std::vector<StateTuple> states;
  for (auto& entry : saved.for_object(parameter, is_torchs)) {
    std::optional<std::string> tensor;
    if (entry.tensor != nullptr) tensor = entry.tensor->info.name;
    states.emplace_back(checkpoint::form_name(entry.form), std::move(entry.key), std::move(tensor), entry.updates);
  }
  return states;
}

/// name, type, shape
using ImportedTensorTuple = std::tuple<std::string, at::ScalarType, std::vector<std::int64_t>>;

std::string write_imported_step(const std::string& folder, const checkpoint::Manifest& manifest,
                                const std::vector<ImportedTensorTuple>& tensors,
                                const std::function<at::Tensor(const std::string&)>& read) {
  std::vector<engine::ImportedTensor> imported;
  for (const auto& [name, type, shape] : tensors) imported.push_back({name, type, shape});
  return engine::write_imported_step(folder, manifest, imported, read);
}

/// The parts of a manifest that an importer fills in.
void bind_imports(py::module_& module) {
  using checkpoint::Manifest;
  using checkpoint::ParameterRecord;
  using checkpoint::TrainingState;
  using optim::LossScaleState;
  py::class_<LossScaleState>(module, "LossScaleState", "The state of a dynamic loss scale.")
      .def(py::init<double, std::int64_t, std::int64_t, int>(), py::arg("scale"), py::arg("step"),
           py::arg("last_overflow_step"), py::arg("hysteresis_left"));
  py::class_<TrainingState>(module, "TrainingState", "Counters and state of a training run.")
      .def(py::init<std::int64_t, std::int64_t, std::int64_t, std::int64_t, std::optional<std::int64_t>,
                    std::optional<LossScaleState>>(),
           py::arg("global_steps"), py::arg("skipped_steps"), py::arg("consecutive_skips"), py::arg("micro_steps"),
           py::arg("schedule_iteration"), py::arg("loss_scale"));
  py::class_<ParameterRecord>(module, "ParameterRecord",
                              "A parameter of a step; updates: how many optimizer steps have updated it.")
      .def(py::init<std::string, std::vector<std::string>, bool, std::int64_t>(), py::arg("name"), py::arg("aliases"),
           py::arg("trainable"), py::arg("updates"));
  py::class_<Manifest>(module, "Manifest", "All of a step except its tensors.")
      .def(py::init<>())
      .def_readwrite("tag", &Manifest::tag)
      .def_readwrite("stage", &Manifest::stage)
      .def_readwrite("frozen_excluded", &Manifest::frozen_excluded)
      .def_readwrite("parameters", &Manifest::parameters)
      .def_readwrite("training", &Manifest::training)
      .def_readwrite("config_json", &Manifest::config_json)
      .def_readwrite("host_json", &Manifest::host_json);
  module.def("write_imported_step", &write_imported_step, py::arg("folder"), py::arg("manifest"), py::arg("tensors"),
             py::arg("read"), Unlocked(),
             "Writes a step of one shard; `read` returns a tensor by name. Returns its path.");
}

std::optional<std::string> load_checkpoint(Engine& engine, Checkpoint& step, bool strict, bool parameters,
                                           bool optimizer_states, bool schedule, bool module_only,
                                           std::string problem) {
  return engine.load_checkpoint(step, {strict, optimizer_states, schedule, parameters, module_only, std::move(problem)})
      .warning();
}

}  // namespace

void init_checkpoint(py::module_& module) {
  py::class_<Checkpoint>(module, "Checkpoint", "A step on disk whose manifest has been checked.")
      .def(py::init(&open_checkpoint), py::arg("path"))
      .def_property_readonly("path", &Checkpoint::path)
      .def_property_readonly("host_json", [](const Checkpoint& self) { return self.manifest().host_json; })
      .def("has_tensor", [](const Checkpoint& self, const std::string& name) { return self.find(name) != nullptr; })
      .def("tensor_names",
           [](const Checkpoint& self) {
             std::vector<std::string> names;
             for (const auto& record : self.manifest().tensors) names.push_back(record.info.name);
             return names;
           })
      .def("read_range", &engine::read_range, py::arg("name"), py::arg("offset"), py::arg("numel"), Unlocked(),
           "Consecutive elements of a flat tensor, on the host.")
      .def("read_tensor", &engine::read_tensor, py::arg("name"), Unlocked(), "A whole tensor, on the host.")
      .def("verify", &Checkpoint::verify, Unlocked(), "Compares every byte with its digest.");
  py::class_<checkpoint::SavedOptimizerStates>(module, "SavedOptimizerStates",
                                               "The optimizer state in a step, whichever program saved it.")
      .def(py::init<const Checkpoint&>(), py::arg("step"), py::keep_alive<1, 2>())
      .def("for_object", &states_for_object, py::arg("parameter"), py::arg("is_torchs"),
           "(form, key, name of the tensor or None, then the count of updates) of everything that an optimizer object "
           "has to read. "
           "Raises "
           "CheckpointError.");
  module.def("save_checkpoint", &save_checkpoint, py::arg("engine"), py::arg("folder"), py::arg("tag"),
             py::arg("latest"), py::arg("exclude_frozen"), py::arg("aliases"), py::arg("host_json"),
             py::arg("host_tensors"), py::arg("caller_state"), Unlocked(), "Collective; returns the step's path.");
  module.def(
      "find_checkpoint",
      [](Engine& engine, const std::string& folder, const std::optional<std::string>& tag) {
        return engine.find_checkpoint(folder, tag);
      },
      py::arg("engine"), py::arg("folder"), py::arg("tag"), Unlocked(), "Collective; the opened step, or None.");
  module.def("load_checkpoint", &load_checkpoint, py::arg("engine"), py::arg("step"), py::arg("strict"),
             py::arg("parameters"), py::arg("optimizer_states"), py::arg("schedule"), py::arg("module_only"),
             py::arg("problem"), Unlocked(), "Collective; returns a warning about the state it did not load, or None.");
  bind_model_files(module);
  bind_imports(module);
}

}  // namespace zeropage::python
