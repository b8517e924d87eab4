/// \file
/// Reports during training: wall_clock_breakdown, memory_breakdown and zeropage.metrics_file. The engine's timeline
/// sums times by kind. This class takes the figures of each optimizer step and passes them on. Times are measured on
/// the host. With wall_clock_breakdown the end of each phase waits for the device, so the times include the device's
/// work.
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

/// One object per engine and rank. Call `end_phase` after each forward, backward and step, then `end_step` after each
/// optimizer step.
class StepObserver {
 public:
  /// Opens the metrics file on rank 0. `core` must outlive this. Errors: IoError.
  StepObserver(const engine::Engine& core, const config::Config& config, int rank, int world_size, c10::Device device);

  /// Whether wall_clock_breakdown is set, so that the times of the phases are printed.
  bool prints_times() const { return prints_times_; }
  /// Whether end_phase does anything.
  bool watches_phases() const { return waits_for_device_ || prints_memory_; }
  bool has_file() const { return file_.has_value(); }

  /// phase: "forward", "backward" or "step". On a device it may wait for the device.
  void end_phase(std::string_view phase) const;

  /// Call after an optimizer step, applied or skipped. Writes the record of the file, and prints times when they are
  /// due. loss: nullopt if the program calls `loss.backward()` itself; lr: of the first group. Returns the times of
  /// that step.
  StepTimes end_step(std::optional<double> loss, double lr);

  /// The values of that step for monitors, under DeepSpeed's names: "Train/Samples/lr" and others.
  std::vector<std::pair<std::string, double>> monitored(std::optional<double> loss, double lr,
                                                        const StepTimes& times) const;

  /// Closes the file.
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
