#include <pybind11/functional.h>
#include <pybind11/stl.h>

#include <chrono>

#include "python/bind/bind.h"
#include "zeropage/base/log.h"
#include "zeropage/report/append_file.h"
#include "zeropage/report/memory_table.h"
#include "zeropage/report/progress.h"

namespace zeropage::python {
namespace {

using report::Progress;

/// Calls `write` with a plain line at every update.
std::unique_ptr<Progress> every_line(std::string unit, std::function<void(std::string_view)> write) {
  report::ProgressOptions options;
  options.unit = std::move(unit);
  options.plain_interval_s = 0.0;
  const auto now_s = [] {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
  };
  return std::make_unique<Progress>(std::move(options), now_s, std::move(write));
}

}  // namespace

void init_report(py::module_& module) {
  py::class_<Progress>(module, "Progress", "The progress line of a training run.")
      .def(py::init([](std::int64_t total_steps, std::string unit) {
             return std::make_unique<Progress>(Progress::on_stderr(total_steps, std::move(unit)));
           }),
           py::arg("total_steps"), py::arg("unit"),
           "Writes to stderr: one line rewritten on a terminal, else plain lines at most every few seconds.")
      .def_static("every_line", &every_line, py::arg("unit"), py::arg("write"), "One line per update.")
      .def(
          "update",
          [](Progress& self, std::int64_t step, double loss, double learning_rate, double units,
             std::optional<double> loss_scale, std::int64_t disk_bytes, double disk_wait_s) {
            self.update({step, loss, learning_rate, units, loss_scale, disk_bytes, disk_wait_s});
          },
          py::arg("step"), py::arg("loss"), py::arg("learning_rate"), py::arg("units"),
          py::arg("loss_scale") = py::none(), py::arg("disk_bytes") = 0, py::arg("disk_wait_s") = 0.0,
          "Records a step, and shows it if the last line is old enough.")
      .def("finish", &Progress::finish, "Shows the last step and ends the line.");

  module.def("format_bytes", &report::format_bytes, py::arg("bytes"));
  module.def(
      "format_memory_table",
      [](int stage, std::vector<report::RankBytes> ranks, std::vector<report::RankBytes> host,
         const formula::StateBytes& formula, const formula::StateBytes& formula_host,
         const formula::StateBytes& formula_stage_0) {
        return report::format_memory_table(
            {stage, std::move(ranks), std::move(host), {formula, formula_host}, formula_stage_0});
      },
      py::arg("stage"), py::arg("ranks"), py::arg("host"), py::arg("formula"), py::arg("formula_host"),
      py::arg("formula_stage_0"),
      "ranks: per rank, bytes of parameters, gradients, optimizer, frames (peak) and buffers; host: the same of what "
      "is offloaded.");
  py::class_<report::AppendFile>(module, "AppendFile",
                                 "Appends lines to a file of metrics, across restarts and on disks that may be full.")
      .def(py::init<std::string, std::string_view>(), py::arg("path"), py::arg("begins"),
           "begins: the first bytes of every file of this kind; in such a file an incomplete last line is removed. "
           "Raises "
           "OSError.")
      .def("is_empty", &report::AppendFile::is_empty)
      .def("write", &report::AppendFile::write, py::arg("line"),
           "line: without its newline. A line that cannot be written is counted; the first one is reported.")
      .def("close", &report::AppendFile::close, "Closes the file and reports how many lines could not be written.");
  module.def("set_log_level", &set_log_level, py::arg("level"),
             "From now on this process does not write less severe lines. Raises ConfigError.");
  module.def("log_info", &log_info, py::arg("message"), "One line to stderr.");
  module.def("log_warn", &log_warn, py::arg("message"), "One line to stderr.");
}

}  // namespace zeropage::python
