#include "zeropage/memory/torch_config.h"

// Included here: the casters of tensors need torch's configuration.
#include <pybind11/stl.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/utils/pybind.h>

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "python/bind/bind.h"
#include "zeropage/paging/function_observer.h"
#include "zeropage/paging/pinned_pages.h"

namespace zeropage::python {
namespace {

struct Use {
  at::Tensor tensor;
  bool writes;
};

/// Python's callable, called with unchanged positional and named arguments.
py::object forward(const py::object& callable, const py::args& arguments, const py::kwargs& named) {
  PyObject* result = PyObject_Call(callable.ptr(), arguments.ptr(), named.empty() ? nullptr : named.ptr());
  if (result == nullptr) throw py::error_already_set();
  return py::reinterpret_steal<py::object>(result);
}

/// A callable that reads its tensors by address, so their pages are pinned while it runs.
class PinnedCall {
 public:
  PinnedCall(py::object callable, std::string name, std::vector<bool> written)
      : callable_(std::move(callable)), name_(std::move(name)), written_(std::move(written)) {}

  py::object call(const py::args& arguments, const py::kwargs& named) {
    std::vector<Use> uses;
    std::size_t position = 0;
    collect(arguments, position, uses);
    for (const auto& [key, value] : named) collect_one(value, position, uses);
    if (uses.empty()) return forward(callable_, arguments, named);
    paging::PinnedPages pages;
    {
      py::gil_scoped_release unlocked;
      for (const auto& use : uses) pages.use(use.tensor, use.writes, name_);
    }
    return forward(callable_, arguments, named);
  }

 private:
  /// Numbers the tensors of a list or tuple, including nested ones, in order.
  void collect(const py::handle& sequence, std::size_t& position, std::vector<Use>& uses) {
    for (const auto& value : sequence) collect_one(value, position, uses);
  }

  void collect_one(const py::handle& value, std::size_t& position, std::vector<Use>& uses) {
    if (py::isinstance<py::list>(value) || py::isinstance<py::tuple>(value)) {
      collect(value, position, uses);
      return;
    }
    const std::size_t index = position++;
    if (!THPVariable_Check(value.ptr())) return;
    const at::Tensor& tensor = THPVariable_Unpack(value.ptr());
    if (paging::is_marked(tensor)) uses.push_back({tensor, index < written_.size() && written_[index]});
  }

  py::object callable_;
  std::string name_;
  std::vector<bool> written_;
};

/// A callable whose custom function makes the pages it needs resident itself.
class UnobservedCall {
 public:
  explicit UnobservedCall(py::object callable) : callable_(std::move(callable)) {}

  py::object call(const py::args& arguments, const py::kwargs& named) {
    const paging::UnobservedFunction scope;
    return forward(callable_, arguments, named);
  }

 private:
  py::object callable_;
};

/// A context in which the observer is paused.
class ObserverPause {
 public:
  void enter() { pause_.emplace(); }
  void exit(const py::args&) { pause_.reset(); }

 private:
  std::optional<paging::PausedObserver> pause_;
};

}  // namespace

void init_kernels(py::module_& module) {
  py::class_<PinnedCall>(module, "PinnedCall",
                         "Calls a kernel that reads its tensors by address, with the pages of parameters resident.")
      .def(py::init<py::object, std::string, std::vector<bool>>(), py::arg("callable"), py::arg("name"),
           py::arg("written"), "written: by position, whether the kernel writes the argument.")
      .def("__call__", &PinnedCall::call);
  module.def("is_paged", &paging::is_paged, py::arg("tensor"),
             "Whether a tensor is a sharded parameter, or an alias of one, and so absent while nothing uses it.");
  py::class_<UnobservedCall>(
      module, "UnobservedCall", py::dynamic_attr(),
      "Calls a function that runs one custom function, whose operators are the first to need pages.")
      .def(py::init<py::object>(), py::arg("callable"))
      .def("__call__", &UnobservedCall::call);
  py::class_<ObserverPause>(module, "ObserverPause",
                            "While entered, torch records nothing that this thread runs, if an observer is active.")
      .def(py::init<>())
      .def("__enter__", &ObserverPause::enter)
      .def("__exit__", &ObserverPause::exit);
}

}  // namespace zeropage::python
