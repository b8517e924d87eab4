#include "zeropage/engine/engine.h"
#include "zeropage/engine/parameter_values.h"
#include "zeropage/paging/parameter_link.h"

// Included here: the casters of tensors need torch's configuration.
#include <pybind11/stl.h>
#include <torch/csrc/utils/pybind.h>

#include "python/bind/bind.h"

namespace zeropage::python {
namespace {

using engine::Engine;
using Kind = engine::ValueName::Kind;
using OptionalTensor = std::optional<at::Tensor>;

OptionalTensor defined(at::Tensor tensor) {
  return tensor.defined() ? OptionalTensor(std::move(tensor)) : std::nullopt;
}

using Values = engine::ParameterValues;

template <at::Tensor (Values::*get)(const at::Tensor&, const engine::ValueName&)>
OptionalTensor value_of(Engine& self, const at::Tensor& parameter, Kind kind, const std::string& state) {
  return defined((self.values().*get)(parameter, {kind, state}));
}

template <void (Values::*set)(const at::Tensor&, const engine::ValueName&, const at::Tensor&)>
void set_value_of(Engine& self, const at::Tensor& parameter, const at::Tensor& value, Kind kind,
                  const std::string& state) {
  (self.values().*set)(parameter, {kind, state}, value);
}

bool is_paged(const at::Tensor& parameter) {
  const auto* link = paging::link_of(parameter.unsafeGetTensorImpl()->unsafe_storage().unsafeGetStorageImpl());
  return link != nullptr && link->paged;
}

}  // namespace

void init_values(py::module_& module) {
  py::enum_<Kind>(module, "ValueKind", "Which value of a parameter.")
      .value("PARAMETER", Kind::kParameter)
      .value("GRADIENT", Kind::kGradient)
      .value("STATE", Kind::kState);
  module.def("is_paged", &is_paged, py::arg("parameter"), "Whether it is evicted while it is not in use.");
  auto engine = py::reinterpret_borrow<py::class_<Engine>>(module.attr("Engine"));
  engine
      .def("full_value", &value_of<&Values::full>, py::arg("parameter"), py::arg("kind"), py::arg("state") = "",
           Unlocked(), "A value in fp32 and the parameter's shape, or None. Collective.")
      .def("set_full_value", &set_value_of<&Values::set_full>, py::arg("parameter"), py::arg("value"), py::arg("kind"),
           py::arg("state") = "", Unlocked(), "Collective.")
      .def("local_value", &value_of<&Values::local>, py::arg("parameter"), py::arg("kind"), py::arg("state") = "",
           Unlocked(), "This rank's elements of a value, flat in fp32.")
      .def("set_local_value", &set_value_of<&Values::set_local>, py::arg("parameter"), py::arg("value"),
           py::arg("kind"), py::arg("state") = "", Unlocked(), "Collective for the parameter itself.")
      .def(
          "assemble_value",
          [](Engine& self, const at::Tensor& parameter, const at::Tensor& piece) {
            return self.values().assemble(parameter, piece);
          },
          py::arg("parameter"), py::arg("piece"), Unlocked(), "The full value of every rank's piece. Collective.")
      .def(
          "piece_of_value",
          [](Engine& self, const at::Tensor& parameter, const at::Tensor& value) {
            return self.values().piece_of(parameter, value);
          },
          py::arg("parameter"), py::arg("value"), Unlocked(), "This rank's elements of a full value, flat in fp32.")
      .def(
          "updates", [](Engine& self, const at::Tensor& parameter) { return self.values().updates(parameter); },
          py::arg("parameter"), "How often the parameter has been updated.")
      .def(
          "set_updates",
          [](Engine& self, const at::Tensor& parameter, std::int64_t updates) {
            self.values().set_updates(parameter, updates);
          },
          py::arg("parameter"), py::arg("updates"))
      .def(
          "exchange_strings", [](Engine& self, const std::string& mine) { return self.values().exchange(mine); },
          py::arg("mine"), Unlocked(), "Every rank's text, by rank. Collective.");
}

}  // namespace zeropage::python
