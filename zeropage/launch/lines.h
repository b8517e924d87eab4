/// \file
/// Bytes in, whole lines out; and the memory of a rank's last lines.
///
/// 1. A line ends with '\n' (or "\r\n"). What came without one is given out when the stream ends.
/// 2. A '\r' inside a line means what it does on a terminal: what follows replaces what came before. So a progress bar
///    is one line, its last state; where somebody reads a log, it gets its state every `kProgressPeriod` as well.
/// 3. A line longer than kMaxLineBytes is given out in pieces: memory stays bounded whatever a rank writes.
#pragma once

#include <chrono>
#include <cstddef>
#include <deque>
#include <functional>
#include <optional>
#include <string>
#include <string_view>

namespace zeropage::launch {

using Time = std::chrono::steady_clock::time_point;

constexpr std::size_t kMaxLineBytes = 64 * 1024;
constexpr std::chrono::seconds kProgressPeriod{10};

/// One stream of one rank, cut into lines.
class LineSplitter {
 public:
  /// Gets a line without its end.
  using OnLine = std::function<void(std::string_view)>;

  /// `log_progress`: give out overwritten states too, at most one every kProgressPeriod (nobody sees a live line).
  explicit LineSplitter(bool log_progress) : log_progress_(log_progress) {}

  /// Takes bytes as they come and calls `on_line` for every line that is complete. Cost: linear; keeps at most
  /// kMaxLineBytes.
  void feed(std::string_view bytes, Time now, const OnLine& on_line);

  /// The stream has ended: gives out what is left, if anything.
  void finish(const OnLine& on_line);

  /// The line so far, as a terminal would show it.
  std::string_view unfinished() const { return line_; }

 private:
  void append(std::string_view text, const OnLine& on_line);
  void overwrite(Time now, const OnLine& on_line);

  bool log_progress_;
  bool returned_ = false;  ///< the last byte was '\r'
  std::string line_;
  std::optional<Time> progress_time_;
};

/// The last lines a rank wrote to its stderr.
class Tail {
 public:
  void add(std::string_view line, Time now);

  /// When the oldest traceback that is still remembered began: the moment the rank failed, often well before it ends.
  std::optional<Time> traceback_time() const;

  /// The remembered lines, from the start of the oldest traceback if there is one. Each ends with '\n'.
  std::string text() const;

 private:
  struct Line {
    Time time;
    std::string text;
    bool opens_traceback;
  };
  std::deque<Line>::const_iterator first_traceback() const;

  std::deque<Line> lines_;
  std::size_t bytes_ = 0;
};

}  // namespace zeropage::launch
