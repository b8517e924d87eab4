/// \file
/// The file of zeropage.metrics_file (docs/monitoring.md): the records of a run, one JSON document per line, for
/// `zeropage report` and `zeropage top`.
///
/// - {"record": "run", ...} when an engine is made: configuration, ranks, the formula's bytes. A resumed run appends
///   another one.
/// - {"record": "step", ...} after every optimizer step: loss, rate, time and its parts, bytes by kind, the pager's
///   counters.
/// - {"record": "pages", ...}: faults and evictions of every page since the engine was made, at steps 1, 10, 100, 200,
///   ... and at the end.
///
/// Rank 0 writes the file, with its own bytes and times. Each line is written at once. A line that cannot be written
/// does not end the training (report/append_file.h).
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
  /// Appends to `path`, makes its folder, and writes the record of the run. `core` must outlive this. Errors: IoError.
  MetricsFile(const std::string& path, const engine::Engine& core, const config::Config& config, int world_size,
              c10::Device device);
  ~MetricsFile();  ///< as close
  MetricsFile(const MetricsFile&) = delete;

  /// loss: nullopt if the program calls `loss.backward()` itself; lr: of the first group. Cost: two system calls, and
  /// every 100 steps two more.
  void write_step(std::optional<double> loss, double lr, const StepTimes& times);

  /// Writes the record of the pages and closes the file.
  void close();

 private:
  void write_pages();
  void write(const std::string& line);

  const engine::Engine& core_;
  report::AppendFile file_;
  bool has_loss_scale_;
  bool closed_ = false;
};

/// Resident memory of this process, including shared memory.
std::int64_t process_bytes();

}  // namespace zeropage::session
