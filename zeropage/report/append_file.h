/// \file
/// Files of metrics to which lines are appended, also after restarts, on disks that may be full.
///
///  1. When a file is opened, an incomplete last line of a killed run is removed, so that the next line is separate.
///     Files that do not start like ours are never truncated; a line end is added instead.
///  2. A line is written completely or not at all: a part that was written to a full disk is removed again.
///  3. A line that cannot be written does not end the training. A warning names the path and the reason for the first
///     such line, and their number at the end.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "zeropage/base/descriptor.h"

namespace zeropage::report {

class AppendFile {
 public:
  /// Appends to `path` and makes its folder. `begins`: the bytes with which every file of this kind starts.
  /// Errors: IoError, because a path that cannot be used is an error in the configuration.
  AppendFile(std::string path, std::string_view begins);
  ~AppendFile();
  AppendFile(const AppendFile&) = delete;

  bool is_empty() const;

  /// Writes `line` and a line end. Cost: two system calls. Throws nothing.
  void write(std::string_view line);

  /// Closes the file, and warns with the number of missing lines. Later lines are dropped.
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
