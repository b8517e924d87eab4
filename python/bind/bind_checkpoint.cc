#include "zeropage/engine/checkpoint.h"

// The casters of tensors come after torch's configuration.
#include <pybind11/stl.h>
#include <torch/csrc/utils/pybind.h>

#include "python/bind/bind.h"
#include "zeropage/engine/engine.h"

namespace zeropage::python {
namespace {

using checkpoint::Checkpoint;
using engine::Engine;

std::unique_ptr<Checkpoint> open_checkpoint(const std::string& path) {
  return std::make_unique<Checkpoint>(checkpoint::system_files(), path);
}

std::string save_checkpoint(Engine& engine, std::string folder, std::string tag, bool latest, bool exclude_frozen,
                            std::map<std::string, std::vector<std::string>> aliases, std::string host_json,
                            std::map<std::string, at::Tensor> host_tensors) {
  return engine.save_checkpoint({std::move(folder), std::move(tag), latest, exclude_frozen, std::move(aliases),
                                 std::move(host_json), std::move(host_tensors)});
}

/// (missing, unexpected)
std::pair<std::vector<std::string>, std::vector<std::string>> load_checkpoint(Engine& engine, Checkpoint& step,
                                                                              bool strict, bool optimizer_states,
                                                                              bool schedule, bool module_only,
                                                                              std::string problem) {
  auto report = engine.load_checkpoint(step, {strict, optimizer_states, schedule, module_only, std::move(problem)});
  return {std::move(report.missing), std::move(report.unexpected)};
}

}  // namespace

void init_checkpoint(py::module_& module) {
  py::class_<Checkpoint>(module, "Checkpoint", "A step on disk whose manifest has been checked.")
      .def(py::init(&open_checkpoint), py::arg("path"))
      .def_property_readonly("path", &Checkpoint::path)
      .def_property_readonly("host_json", [](const Checkpoint& self) { return self.manifest().host_json; })
      .def("has_tensor", [](const Checkpoint& self, const std::string& name) { return self.find(name) != nullptr; })
      .def("read_tensor", &engine::read_tensor, py::arg("name"), Unlocked(), "A whole tensor, on the host.")
      .def("verify", &Checkpoint::verify, Unlocked(), "Compares every byte with its digest.");
  module.def("save_checkpoint", &save_checkpoint, py::arg("engine"), py::arg("folder"), py::arg("tag"),
             py::arg("latest"), py::arg("exclude_frozen"), py::arg("aliases"), py::arg("host_json"),
             py::arg("host_tensors"), Unlocked(), "Collective; returns the step's path.");
  module.def(
      "find_checkpoint",
      [](Engine& engine, const std::string& folder, const std::optional<std::string>& tag) {
        return engine.find_checkpoint(folder, tag);
      },
      py::arg("engine"), py::arg("folder"), py::arg("tag"), Unlocked(), "Collective; the path of the step, or None.");
  module.def("load_checkpoint", &load_checkpoint, py::arg("engine"), py::arg("step"), py::arg("strict"),
             py::arg("optimizer_states"), py::arg("schedule"), py::arg("module_only"), py::arg("problem"), Unlocked(),
             "Collective; returns (missing, unexpected).");
}

}  // namespace zeropage::python
