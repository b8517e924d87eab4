#include "python/bind/bind.h"
#include "zeropage/base/error.h"
#include "zeropage/base/exit_code.h"
#include "zeropage/base/host_error.h"

// After the project's headers, because torch's exceptions include Python's headers.
#include <c10/util/Exception.h>
#include <torch/csrc/Exceptions.h>

namespace zeropage::python {
namespace {

/// Sets the Python exception of this name. The class is looked up when needed, so no reference outlives the
/// interpreter.
void raise_as(const char* name, const std::exception& error) {
  const py::object type = py::module_::import("zeropage.errors").attr(name);
  PyErr_SetString(type.ptr(), error.what());
}

void translate(std::exception_ptr pointer) {
  try {
    if (pointer) std::rethrow_exception(pointer);
  } catch (const ConfigError& error) {
    raise_as("ConfigError", error);
  } catch (const UsageError& error) {
    raise_as("UsageError", error);
  } catch (const IoError& error) {
    raise_as("IoError", error);
  } catch (const CheckpointError& error) {
    raise_as("CheckpointError", error);
  } catch (const PeerError& error) {
    raise_as("PeerError", error);
  } catch (const TimeoutError& error) {
    raise_as("TimeoutError", error);
  } catch (const Error& error) {
    raise_as("ZeropageError", error);
  } catch (python_error& error) {
    error.restore();  // raised by Python code that autograd called
  } catch (const c10::Error&) {
    torch::translate_exception_to_python(std::current_exception());
  }
}

/// Rethrows the C++ form of a Python exception as torch's C++ code does.
void throw_as_python(std::exception_ptr pointer) {
  py::gil_scoped_acquire locked;
  translate(std::move(pointer));
  python_error error;
  error.persist();
  throw error;
}

}  // namespace

void init_errors(py::module_& module) {
  py::dict codes;
  codes["ConfigError"] = exit_code(ConfigError(""));
  codes["UsageError"] = exit_code(UsageError(""));
  codes["IoError"] = exit_code(IoError(""));
  codes["CheckpointError"] = exit_code(CheckpointError(""));
  codes["PeerError"] = exit_code(PeerError(""));
  codes["TimeoutError"] = exit_code(TimeoutError(""));
  module.attr("EXIT_CODES") = codes;
  py::register_local_exception_translator(&translate);
  set_host_error_translator(&throw_as_python);
}

}  // namespace zeropage::python
