/// \file
/// Log lines for people, on stderr: time, "zeropage", level, message. They are for events; the room report/ prints
/// progress and tables. The launcher writes the rank before every line.
#pragma once

#include <mutex>
#include <set>
#include <string>

namespace zeropage {

/// From now on the whole process writes no lines that are less severe than `level`: "debug", "info", "warning", "error"
/// or "critical". Errors: ConfigError for another name.
void set_log_level(const std::string& level);

/// Writes one line. Safe from several threads. Cost: a system call. Does not throw when nothing reads stderr.
void log_info(const std::string& message);
void log_warn(const std::string& message);

/// Warns of each key once in the lifetime of this object, which an engine or a pager owns. There is no global list.
class WarnOnce {
 public:
  /// Writes `message` unless this object has warned of `key` before; returns whether it did. Thread-safe.
  bool warn(const std::string& key, const std::string& message);

 private:
  std::mutex mutex_;
  std::set<std::string> warned_;
};

}  // namespace zeropage
