#include <memory>
#include <optional>

#include <pybind11/stl.h>

#include "python/bind/bind.h"
#include "zeropage/base/blocking.h"
#include "zeropage/optim/device_kernels.h"

namespace zeropage::python {
namespace {

/// Releases the interpreter lock while this thread waits for another rank, which may be a thread of this interpreter.
class UnlockedWait : public BlockingScope {
 public:
  UnlockedWait() : state_(PyEval_SaveThread()) {}
  ~UnlockedWait() override { PyEval_RestoreThread(state_); }

 private:
  PyThreadState* state_;
};

std::unique_ptr<BlockingScope> enter_unlocked_wait() {
  return PyGILState_Check() ? std::make_unique<UnlockedWait>() : nullptr;
}

}  // namespace
}  // namespace zeropage::python

PYBIND11_MODULE(TORCH_EXTENSION_NAME, module) {
  using namespace zeropage::python;
  module.doc() = "Zeropage's C++ side. Use the package `zeropage`; this module may change without notice.";
  module.attr("version") = ZEROPAGE_VERSION;
  init_errors(module);
  init_config(module);
  init_report(module);
  init_plan(module);
  init_comm(module);
  init_c10d(module);
  init_engine(module);
  init_session(module);
  init_optimizers(module);
  init_values(module);
  init_checkpoint(module);
  init_init(module);
  init_kernels(module);
  module.def(
      "set_device_kernels",
      [](int device_type, const std::optional<py::capsule>& kernels) {
        zeropage::optim::set_device_kernels(
            device_type, kernels ? kernels->get_pointer<const zeropage::optim::DeviceKernels>() : nullptr);
      },
      "For devices of tests: a capsule with optim::DeviceKernels (None: none) for torch's number of a device type.");
  zeropage::set_blocking_scope_factory(&enter_unlocked_wait);
}
