/// \file
/// What a run tells about itself while it goes on, as the Python package does: wall_clock_breakdown, memory_breakdown, csv_monitor and
/// zeropage.metrics_file. The engine's timeline adds up where time goes; here the figures of each optimizer step are taken and handed
/// on. The forward is not called through the engine: its time counts from `before_forward`, where a program calls it.
#pragma once

#include <chrono>
#include <memory>
#include <optional>
#include <string_view>

#include "zeropage/cpp/metrics_file.h"
#include "zeropage/cpp/monitor.h"

namespace zeropage::cpp {

/// Memory of this process that is resident, what it shares included.
std::int64_t process_bytes();

/// Of one engine, on one rank. `core` must outlive this.
class StepObserver {
 public:
  /// Opens the files. Errors: IoError.
  StepObserver(const Engine& engine, const engine::Engine& core);

  void end_backward(const Engine& engine) { end_phase(engine, "backward"); }

  /// After an optimizer step, applied or skipped. Errors: IoError.
  void end_step(const Engine& engine);

  Monitor& monitor() { return monitor_; }

 private:
  struct Mark {
    Parts totals;
    std::chrono::steady_clock::time_point time;
  };

  Mark mark() const;
  static Parts since(const Mark& before, const Mark& now);
  void end_phase(const Engine& engine, std::string_view phase) const;
  void print_times(const Engine& engine, const Mark& now);

  const engine::Engine& core_;
  bool prints_times_ = false;
  bool prints_memory_ = false;
  bool waits_for_device_ = false;
  std::int64_t steps_per_print_ = 0;
  std::optional<MetricsFile> file_;
  Monitor monitor_;
  Mark last_;  ///< the end of the last step
  Mark printed_;
  std::int64_t printed_step_ = 0;
};

}  // namespace zeropage::cpp
