// C++ functions for the step of an optimizer of PyTorch.
#include <pybind11/stl.h>
#include <torch/csrc/utils/pybind.h>

#include "python/bind/bind.h"
#include "zeropage/engine/engine.h"
#include "zeropage/session/muon.h"
#include "zeropage/session/newton_schulz.h"
#include "zeropage/session/tensors_on_drive.h"
#include "zeropage/session/whole_parameters.h"

namespace zeropage::python {
namespace {

using session::ParameterPart;
using session::TensorsOnDrive;
using session::WholeParameters;
using session::WholeShape;

void add(WholeParameters& self, const std::map<int, WholeShape>& shapes,
         const std::map<int, std::pair<std::int64_t, std::int64_t>>& mine) {
  std::map<int, ParameterPart> parts;
  for (const auto& [parameter, part] : mine) parts[parameter] = {part.first, part.second};
  self.add(shapes, parts);
}

void muon_step(const at::Tensor& parameter, const at::Tensor& gradient, const at::Tensor& momentum_buffer, double lr,
               double momentum, double weight_decay, bool nesterov, std::string ns_method, std::int64_t ns_steps,
               std::string ns_dtype, std::string adjust_lr_fn, std::int64_t matrices) {
  session::muon_step(parameter, gradient, momentum_buffer,
                     {lr, momentum, weight_decay, nesterov, std::move(ns_method), ns_steps, std::move(ns_dtype),
                      std::move(adjust_lr_fn), matrices});
}

void adam_step(const at::Tensor& parameter, const at::Tensor& gradient, const at::Tensor& exp_avg,
               const at::Tensor& exp_avg_sq, double step, double lr, std::pair<double, double> betas, double eps,
               double weight_decay, bool adam_w_mode) {
  session::adam_step(parameter, gradient, exp_avg, exp_avg_sq, step,
                     {lr, betas.first, betas.second, eps, weight_decay, adam_w_mode});
}

}  // namespace

void init_optimizers(py::module_& module) {
  py::class_<WholeShape>(module, "WholeShape", "Maps a parameter's elements in memory to a tensor of its shape.")
      .def_static("of", &WholeShape::of, py::arg("parameter"))
      .def_property_readonly("extents", [](const WholeShape& self) { return py::tuple(py::cast(self.extents)); })
      .def("numel", &WholeShape::numel)
      .def("flat", &WholeShape::flat, py::arg("value"), "One-dimensional, in the parameter's memory order.")
      .def("shaped", &WholeShape::shaped, py::arg("flat"), "The reverse of flat; a view.");
  py::class_<WholeParameters>(module, "WholeParameters",
                              "Parameters that an optimizer object gets unsharded; see session/whole_parameters.h.")
      .def(py::init<std::shared_ptr<comm::Communicator>, c10::Device>(), py::arg("communicator"), py::arg("device"))
      .def("add", &add, py::arg("shapes"), py::arg("mine"), Unlocked(),
           "Collective. mine: (first element, elements) of each that this rank updates.")
      .def("__contains__", &WholeParameters::contains, py::arg("parameter"))
      .def("shape", &WholeParameters::shape, py::arg("parameter"))
      .def("owner", &WholeParameters::owner, py::arg("parameter"))
      .def("is_sent", &WholeParameters::is_sent, py::arg("parameter"), "Whether the ranks send its parts to an owner.")
      .def("seen", &WholeParameters::seen, "The parameters that the optimizer of this rank updates.")
      .def(
          "gather", &WholeParameters::gather, py::arg("mine"), Unlocked(),
          "Collective. mine: parameter -> (values, gradient or None), flat. Returns the same for unsharded parameters.")
      .def("scatter", &WholeParameters::scatter, py::arg("whole"), py::arg("mine"), Unlocked(), "Collective.")
      .def("from_owner", &WholeParameters::from_owner, py::arg("parameter"), py::arg("mine"), Unlocked(),
           "Collective. A new fp32 copy of the owner's tensor; None when the owner has none.")
      .def("agree", &WholeParameters::agree, py::arg("failure"), Unlocked(),
           "Collective. Whether all succeeded. Raises PeerError when another rank failed alone.");
  py::class_<TensorsOnDrive, std::shared_ptr<TensorsOnDrive>>(
      module, "TensorsOnDrive",
      "Tensors of an optimizer's state whose bytes are on a drive; see session/tensors_on_drive.h.")
      .def_static(
          "of",
          [](const config::Config& config, const engine::Engine& core, int rank) {
            return session::make_tensors_on_drive(config, rank, core.ledger());
          },
          py::arg("config"), py::arg("core"), py::arg("rank"), "None if the state stays in memory.")
      .def("put", &TensorsOnDrive::put, py::arg("tensor"), py::arg("name"), Unlocked(),
           "Moves the bytes of a large tensor to the drive. The tensor object remains, without memory.")
      .def("get", &TensorsOnDrive::get, py::arg("tensor"), Unlocked(), "Moves the bytes back to memory.")
      .def("read", &TensorsOnDrive::read, py::arg("tensor"), Unlocked(),
           "A copy of the bytes on the drive; the tensor itself if it is in memory.")
      .def("has", &TensorsOnDrive::has, py::arg("tensor"), "Whether the bytes are on the drive now.");
  module.def("keeps_momenta_in_memory", &session::keeps_momenta_in_memory, py::arg("config"));
  module.def("orthogonal", &session::orthogonal, py::arg("u"), py::arg("method"), py::arg("steps"),
             py::arg("dtype") = std::nullopt, Unlocked(), "See session/newton_schulz.h.");
  module.def("as_matrices", &session::as_matrices, py::arg("update"), py::arg("count"), "See session/muon.h.");
  module.def("muon_step", &muon_step, py::arg("parameter"), py::arg("gradient"), py::arg("momentum_buffer"),
             py::kw_only(), py::arg("lr"), py::arg("momentum"), py::arg("weight_decay"), py::arg("nesterov"),
             py::arg("ns_method"), py::arg("ns_steps"), py::arg("ns_dtype"), py::arg("adjust_lr_fn"),
             py::arg("matrices"), Unlocked(),
             "One update of an unsharded parameter; see session/muon.h. The keywords are those of a parameter group.");
  module.def("adam_step", &adam_step, py::arg("parameter"), py::arg("gradient"), py::arg("exp_avg"),
             py::arg("exp_avg_sq"), py::kw_only(), py::arg("step"), py::arg("lr"), py::arg("betas"), py::arg("eps"),
             py::arg("weight_decay"), py::arg("adam_w_mode"), Unlocked(),
             "One update of a parameter that Muon leaves to Adam.");
}

}  // namespace zeropage::python
