/// \file
/// The file of zeropage.metrics_file, as the Python package writes it (docs/monitoring.md): what a run was and did, one JSON document a
/// line, for `zeropage report` and `zeropage top`.
///
///     {"record": "run", ...}     when an engine begins
///     {"record": "step", ...}    after every optimizer step
///     {"record": "pages", ...}   faults and evictions of every page: at steps 1, 10, 100, 200, ... and at the end
///
/// Rank 0 writes, and its bytes and times are its own. Each line is handed to the system at once; one that cannot
/// be written ends no training (report/append_file.h).
#pragma once

#include <map>
#include <string>

#include "zeropage/cpp/engine.h"
#include "zeropage/engine/engine.h"
#include "zeropage/report/append_file.h"

namespace zeropage::cpp {

/// Seconds by part of a step: "forward", "backward", ...
using Parts = std::map<std::string, double>;

class MetricsFile {
 public:
  /// Appends to `path`, whose folder is made. `core` must outlive this. Errors: IoError.
  MetricsFile(const std::string& path, const engine::Engine& core);
  ~MetricsFile();  ///< writes the pages
  MetricsFile(const MetricsFile&) = delete;

  void write_run(const Engine& engine);

  /// seconds: since the last step. Cost: two system calls, and every 100 steps two more.
  void write_step(const Engine& engine, const Parts& parts, double seconds);

 private:
  void write_pages();
  void write(const std::string& line);

  const engine::Engine& core_;
  report::AppendFile file_;
};

}  // namespace zeropage::cpp
