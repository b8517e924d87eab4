/// \file
/// The file of zeropage.metrics_file (docs/monitoring.md): what a run was and did, one JSON document a line, for
/// `zeropage report` and `zeropage top`.
///
/// - {"record": "run", ...} when an engine is made: configuration, ranks, the formula's bytes. A resumed run appends
///   another one.
/// - {"record": "step", ...} after every optimizer step: loss, rate, time and its parts, bytes by kind, the pager's
///   counters.
/// - {"record": "pages", ...}: faults and evictions of every page since the engine was made, at steps 1, 10, 100, 200,
///   ... and at the end.
///
/// Rank 0 writes, and its bytes and times are its own. Each line is handed to the system at once; one that cannot
/// be written ends no training (report/append_file.h).
#pragma once

#include <optional>
#include <string>

#include "zeropage/config/config.h"
#include "zeropage/engine/engine.h"
#include "zeropage/report/append_file.h"
#include "zeropage/session/step_times.h"

namespace zeropage::session {

class MetricsFile {
 public:
  /// Appends to `path`, whose folder is made, and writes the run's record. `core` must outlive this. Errors: IoError.
  MetricsFile(const std::string& path, const engine::Engine& core, const config::Config& config, int world_size,
              c10::Device device);
  ~MetricsFile();  ///< as close
  MetricsFile(const MetricsFile&) = delete;

  /// loss: absent where the program runs `loss.backward()` itself; lr: of the first group. Cost: two system calls, and
  /// every 100 steps two more.
  void write_step(std::optional<double> loss, double lr, const StepTimes& times);

  /// Writes the pages and ends the file.
  void close();

 private:
  void write_pages();
  void write(const std::string& line);

  const engine::Engine& core_;
  report::AppendFile file_;
  bool has_loss_scale_;
  bool closed_ = false;
};

/// Memory of this process that is resident, what it shares included.
std::int64_t process_bytes();

}  // namespace zeropage::session
