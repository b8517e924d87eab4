/// \file
/// Files of metrics that grow line by line, over restarts, on disks that may be full.
///
///  1. At open, what a kill cut short at the end of an earlier run is removed, so that the next line is one of its own.
///     Files that do not begin as ours do are never cut: there a line end is added.
///  2. A line is written whole or not at all: what a full disk took of it is removed again.
///  3. A line that cannot be written ends nothing. The first one is said with the path and the reason, the number of
///     them at the end.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "zeropage/base/descriptor.h"

namespace zeropage::report {

class AppendFile {
 public:
  /// Appends to `path`, whose folder is made. `begins`: the bytes with which each file of this kind starts.
  /// Errors: IoError, since a path that cannot be used is a mistake in the configuration.
  AppendFile(std::string path, std::string_view begins);
  ~AppendFile();
  AppendFile(const AppendFile&) = delete;

  bool is_empty() const;

  /// `line` with its end. Cost: two system calls. Throws nothing.
  void write(std::string_view line);

  /// Ends the file, and says how many lines are missing; later lines are dropped.
  void close();

 private:
  void mend(std::string_view begins);
  bool append(std::string_view bytes);
  void lose(int error);

  std::string path_;
  Descriptor file_;
  std::int64_t lost_ = 0;
};

}  // namespace zeropage::report
