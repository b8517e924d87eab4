/// \file
/// Lines for people, to stderr: time, "zeropage", level, message. For events, not for data: progress and tables have
/// the room report/. The launcher puts the rank before every line.
#pragma once

#include <mutex>
#include <set>
#include <string>

namespace zeropage {

/// From now on lines less severe than `level`, among "debug", "info", "warning", "error" and "critical", are not
/// written. Of the whole process. Errors: ConfigError for another name.
void set_log_level(const std::string& level);

/// Writes one line. Safe from several threads. Cost: a system call. Never throws for lack of a reader.
void log_info(const std::string& message);
void log_warn(const std::string& message);

/// Warns of each thing once. Its owner (an engine, a pager) says how long "once" lasts; there is no global memory.
class WarnOnce {
 public:
  /// Writes `message` unless this object has warned of `key` before; returns whether it did. Thread-safe.
  bool warn(const std::string& key, const std::string& message);

 private:
  std::mutex mutex_;
  std::set<std::string> warned_;
};

}  // namespace zeropage
