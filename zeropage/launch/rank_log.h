/// \file
/// The output of one rank: its two streams cut into lines, the last lines, and its log file.
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
  /// `folder`: for the rank's file; empty: no file. `started`: part of the names of this run's files. Errors: IoError.
  RankLog(const RankPlan& plan, const Console& console, const std::string& folder, const std::string& started);

  LineSplitter& lines(Stream stream) { return stream == Stream::kErr ? err : out; }

  /// Takes bytes of a stream (none: it has ended) and passes complete lines to the console with the rank's prefix.
  void take(Stream stream, std::string_view bytes, Time now, Console& console, bool is_first);

  int number;
  std::string host;    ///< empty: this one
  std::string prefix;  ///< before each line: "[rank 3] ", "[worker-1:3] "
  LineSplitter out;
  LineSplitter err;
  Tail tail;
  Descriptor file;
  bool has_ended = false;
  std::optional<int> failure;  ///< its wait status, if it failed before it was asked to end
  Time ended{};

  /// The time of its failure: the start of its traceback, or its end if it wrote none.
  Time failed_at() const { return std::min(tail.traceback_time().value_or(ended), ended); }
};

/// The current time, for names of files: 20260131_235959.
std::string time_stamp();

}  // namespace zeropage::launch
