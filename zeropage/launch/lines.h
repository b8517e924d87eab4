/// \file
/// Splits a stream of bytes into lines, and remembers the last lines of a rank.
///
/// 1. A line ends with '\n' (or "\r\n"). A last line without an end is passed on when the stream ends.
/// 2. A '\r' inside a line works as on a terminal: the following text replaces the text before it. So a progress bar is
///    one line, its last state. In logs its state is also written every `kProgressPeriod`.
/// 3. A line longer than kMaxLineBytes is passed on in pieces, so memory is limited whatever a rank writes.
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

  /// `log_progress`: also pass on overwritten states, at most one every kProgressPeriod, because there is no terminal
  /// with a live line.
  explicit LineSplitter(bool log_progress) : log_progress_(log_progress) {}

  /// Takes the next bytes and calls `on_line` for every complete line. Cost: linear; keeps at most kMaxLineBytes.
  void feed(std::string_view bytes, Time now, const OnLine& on_line);

  /// Call at the end of the stream: passes on the rest, if there is any.
  void finish(const OnLine& on_line);

  /// The line so far, as a terminal would show it.
  std::string_view unfinished() const { return line_; }

 private:
  void append(std::string_view text, const OnLine& on_line);
  void overwrite(Time now, const OnLine& on_line);

  bool log_progress_;
  bool returned_ = false;  ///< whether the last byte was '\r'
  std::string line_;
  std::optional<Time> progress_time_;
};

/// The last lines a rank wrote to its stderr.
class Tail {
 public:
  void add(std::string_view line, Time now);

  /// The time of the oldest remembered traceback. The rank failed at this time, often long before it ends.
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
