/// \file
/// The progress line of a training run. On a terminal one line is rewritten; elsewhere (a file, the launcher's pipe)
/// plain lines appear at most every few seconds. One rank prints it. This class only formats: the caller gives it a
/// clock and an output.
///
///     step 120/1000  loss 2.3456  lr 1.00e-04  12.3k tokens/s  scale 65536  disk 2.10 GB/s, limit: drive  left 3m12s
///
/// The drive is the limit if the rank waits for it more than half of the time.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>

namespace zeropage::report {

/// A count with three digits and k, M, G or T: 0.52, 98.7, 12.3k.
std::string format_quantity(double value);

/// 8s, 3m12s, 2h05m, 4d03h; "?" when negative or not finite.
std::string format_duration(double seconds);

/// The figures of one optimizer step.
struct ProgressSample {
  std::int64_t step = 0;  ///< steps done, from 1
  double loss = 0.0;
  double learning_rate = 0.0;
  double units = 0.0;                ///< tokens or samples of this step, over all ranks
  std::optional<double> loss_scale;  ///< fp16 only
  std::int64_t disk_bytes = 0;       ///< read and written since the start, by this rank; 0: no state is on a drive
  double disk_wait_s = 0.0;          ///< the time in which this rank waited for them
};

struct ProgressOptions {
  std::int64_t total_steps = 0;  ///< 0: unknown; then no time left is shown
  std::string unit = "samples";
  bool terminal = false;
  int columns = 0;                  ///< a terminal line is cut to fit; 0: never
  double plain_interval_s = 5.0;    ///< between plain lines, at least
  double rewrite_interval_s = 0.1;  ///< between rewrites on a terminal, at least
};

class Progress {
 public:
  /// `now_s`: a monotonic clock in seconds. `write`: takes text as it must appear, newlines included.
  Progress(ProgressOptions options, std::function<double()> now_s, std::function<void(std::string_view)> write);

  /// Writes to stderr and uses the steady clock. Detects whether stderr is a terminal, and its width.
  static Progress on_stderr(std::int64_t total_steps, std::string unit);

  /// Adds a step, and shows it if the last line is old enough. Rates are averaged over about ten seconds.
  void update(const ProgressSample& sample);

  /// Shows the last step if it was not shown, and ends the line. More updates may follow.
  void finish();

 private:
  void note_rates(const ProgressSample& sample, double now_s);
  void show();
  std::string line() const;

  ProgressOptions options_;
  std::function<double()> now_s_;
  std::function<void(std::string_view)> write_;
  std::optional<ProgressSample> last_;
  double last_time_s_ = 0.0;
  double shown_time_s_ = 0.0;
  std::int64_t shown_step_ = -1;
  std::optional<double> seconds_per_step_;
  double units_per_s_ = 0.0;
  double disk_bytes_per_s_ = 0.0;
  double disk_wait_share_ = 0.0;
  std::size_t rewritten_columns_ = 0;  ///< length of the terminal line that is being rewritten
};

}  // namespace zeropage::report
