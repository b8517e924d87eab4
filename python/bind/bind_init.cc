#include "zeropage/engine/init.h"

// Included here: the casters of tensors need torch's configuration.
#include <pybind11/stl.h>
#include <torch/csrc/utils/pybind.h>

#include "python/bind/bind.h"
#include "zeropage/paging/parameter_link.h"

namespace zeropage::python {

void init_init(py::module_& module) {
  using engine::Init;
  py::class_<Init>(module, "Init", "While entered, tensors that this thread makes are sharded beyond the live limit.")
      .def(py::init<const config::Config&, std::shared_ptr<comm::Communicator>, c10::Device>(), py::arg("config"),
           py::arg("communicator"), py::arg("device"))
      .def("leave", &Init::leave, "Ends the scope.")
      .def("adopt", &Init::adopt, py::arg("tensor"), Unlocked(), "Adopts a tensor that was made outside.");
  module.def(
      "set_profiled",
      [](bool profiled, const std::vector<at::Tensor>& tensors) {
        paging::set_profiled(profiled);
        for (const auto& tensor : tensors) {
          for (const auto& each : {tensor, tensor.grad()}) {
            if (each.defined() && paging::is_marked(each)) {
              paging::guard_again(each.unsafeGetTensorImpl()->unsafe_storage().unsafeGetStorageImpl());
            }
          }
        }
      },
      py::arg("profiled"), py::arg("tensors"), "Whether torch's profiler runs, and which tensors may be absent now.");
  module.attr("PARAMETER_KEY") = c10::toString(paging::kParameterKey);
  module.def("is_deferred", &engine::is_deferred, py::arg("tensor"),
             "Whether it was made in an Init scope and has no engine yet.");
  module.def("settle", &engine::settle, py::arg("tensor"), Unlocked(), "Turns a deferred tensor into an ordinary one.");
  module.def("gather_deferred", &engine::gather_deferred, py::arg("tensors"), Unlocked(), "Makes them resident.");
  module.def("release_deferred", &engine::release_deferred, py::arg("tensors"), py::arg("modifier_rank"), Unlocked(),
             "Ends gather_deferred; modifier_rank >= 0: every rank gets that rank's values.");
}

}  // namespace zeropage::python
