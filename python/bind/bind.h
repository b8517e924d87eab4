/// \file
/// The parts of the module `zeropage._C`. A bind file adapts arguments and names, and has no logic of its own.
#pragma once

#include <pybind11/pybind11.h>

namespace zeropage::python {

namespace py = pybind11;

/// For calls that may wait for another rank or run autograd.
using Unlocked = py::call_guard<py::gil_scoped_release>;

/// Translates the project's exceptions into the classes of `zeropage.errors`.
void init_errors(py::module_& module);
void init_config(py::module_& module);
void init_report(py::module_& module);
void init_plan(py::module_& module);
void init_comm(py::module_& module);
void init_c10d(py::module_& module);
void init_engine(py::module_& module);
void init_session(py::module_& module);
void init_optimizers(py::module_& module);
void init_values(py::module_& module);
void init_checkpoint(py::module_& module);
void init_init(py::module_& module);
void init_kernels(py::module_& module);

}  // namespace zeropage::python
