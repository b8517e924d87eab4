/// \file
/// What a run tells about itself while it trains: wall_clock_breakdown, memory_breakdown and zeropage.metrics_file. The
/// engine's timeline adds up where time goes; here the figures of each optimizer step are taken and handed on. Times
/// are those of the host; with wall_clock_breakdown on a device the end of each phase waits for the device, so that
/// they are the device's, too.
#pragma once

#include <chrono>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "zeropage/config/config.h"
#include "zeropage/engine/engine.h"
#include "zeropage/session/metrics_file.h"
#include "zeropage/session/step_times.h"

namespace zeropage::session {

/// Of one engine, on one rank: `end_phase` after each forward, backward and step, then `end_step` after each optimizer
/// step.
class StepObserver {
 public:
  /// Opens the metrics file on rank 0. `core` must outlive this. Errors: IoError.
  StepObserver(const engine::Engine& core, const config::Config& config, int rank, int world_size, c10::Device device);

  /// Whether wall_clock_breakdown asks for times of the phases.
  bool prints_times() const { return prints_times_; }
  /// Whether end_phase does anything.
  bool watches_phases() const { return waits_for_device_ || prints_memory_; }
  bool has_file() const { return file_.has_value(); }

  /// phase: "forward", "backward" or "step". On a device it may wait for the device.
  void end_phase(std::string_view phase) const;

  /// After an optimizer step, applied or skipped: writes the file's record and prints times where they are due. loss:
  /// absent where the program runs `loss.backward()` itself; lr: of the first group. Returns the times of that step.
  StepTimes end_step(std::optional<double> loss, double lr);

  /// What monitors are told of that step, under DeepSpeed's names: "Train/Samples/lr" and others.
  std::vector<std::pair<std::string, double>> monitored(std::optional<double> loss, double lr,
                                                        const StepTimes& times) const;

  /// Ends the file.
  void close();

 private:
  struct Mark {
    Parts totals;
    std::chrono::steady_clock::time_point time;
  };

  Mark mark() const;
  static StepTimes between(const Mark& before, const Mark& now);
  std::string memory_line() const;
  void print_times(const Mark& now);

  const engine::Engine& core_;
  c10::Device device_;
  bool has_loss_scale_;
  bool prints_times_ = false;
  bool prints_memory_ = false;
  bool waits_for_device_ = false;
  std::int64_t steps_per_print_ = 0;
  std::optional<MetricsFile> file_;
  Mark last_;  ///< the end of the last step
  Mark printed_;
  std::int64_t printed_step_ = 0;
};

}  // namespace zeropage::session
