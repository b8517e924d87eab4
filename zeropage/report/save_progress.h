/// \file
/// The progress of a save, on a terminal: a line that appears when the save takes longer than a second, is rewritten,
/// and is removed at the end. One rank shows it.
///
///     saving global_step120: 43% of 1.25 GB, 3s left
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>

namespace zeropage::report {

class SaveProgress {
 public:
  /// `now_s`: a monotonic clock in seconds. `write`: takes text as it must appear.
  SaveProgress(std::string what, std::function<double()> now_s, std::function<void(std::string_view)> write);

  /// Call from time to time. The line is removed when everything is written.
  void update(std::int64_t done_bytes, std::int64_t total_bytes);

  /// A function that calls `update` of a line on stderr; null when stderr is no terminal.
  static std::function<void(std::int64_t done_bytes, std::int64_t total_bytes)> on_stderr(std::string what);

 private:
  std::string what_;
  std::function<double()> now_s_;
  std::function<void(std::string_view)> write_;
  double begun_s_;
  double shown_s_;
  std::size_t columns_ = 0;  ///< of the current line
};

}  // namespace zeropage::report
