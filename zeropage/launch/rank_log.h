/// \file
/// What one rank says: its two streams cut into lines, the memory of the last ones, and its log file.
#pragma once

#include <algorithm>
#include <optional>
#include <string>

#include "zeropage/base/descriptor.h"
#include "zeropage/launch/console.h"
#include "zeropage/launch/job_plan.h"
#include "zeropage/launch/lines.h"

namespace zeropage::launch {

struct RankLog {
  /// `folder`: where the rank's file is made; empty: none. `started`: names this run's files. Errors: IoError.
  RankLog(const RankPlan& plan, const Console& console, const std::string& folder, const std::string& started);

  LineSplitter& lines(Stream stream) { return stream == Stream::kErr ? err : out; }

  /// Takes bytes of a stream (none: it has ended) and passes complete lines to the console, marked.
  void take(Stream stream, std::string_view bytes, Time now, Console& console, bool is_first);

  int number;
  std::string host;    ///< empty: this one
  std::string prefix;  ///< of its lines: "[rank 3] ", "[worker-1:3] "
  LineSplitter out;
  LineSplitter err;
  Tail tail;
  Descriptor file;
  bool has_ended = false;
  std::optional<int> failure;  ///< wait status, if it failed before anybody told it to end
  Time ended{};

  /// When it failed: when its traceback began, or when it ended if it wrote none.
  Time failed_at() const { return std::min(tail.traceback_time().value_or(ended), ended); }
};

/// The moment, for names of files: 20260131_235959.
std::string time_stamp();

}  // namespace zeropage::launch
