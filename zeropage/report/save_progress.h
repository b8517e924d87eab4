/// \file
/// How far a save is, on a terminal: a line that appears when it takes longer than a second, is rewritten, and goes
/// away at its end. For one rank to show.
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

  /// Call from time to time. The line goes away when all is done.
  void update(std::int64_t done_bytes, std::int64_t total_bytes);

  /// Something that calls update of a line on stderr; null when stderr is no terminal.
  static std::function<void(std::int64_t done_bytes, std::int64_t total_bytes)> on_stderr(std::string what);

 private:
  std::string what_;
  std::function<double()> now_s_;
  std::function<void(std::string_view)> write_;
  double begun_s_;
  double shown_s_;
  std::size_t columns_ = 0;  ///< of the line that is there
};

}  // namespace zeropage::report
