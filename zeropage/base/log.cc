#include "zeropage/base/log.h"

#include <fmt/format.h>
#include <spdlog/logger.h>
#include <spdlog/sinks/stdout_sinks.h>

#include <map>
#include <memory>

#include "zeropage/base/error.h"

namespace zeropage {
namespace {

/// Our own logger, not one of spdlog's registry, so that programs that use spdlog are not disturbed. Never destroyed:
/// threads may still log while the program exits.
spdlog::logger& logger() {
  static spdlog::logger* const made = [] {
    auto* logger = new spdlog::logger("zeropage", std::make_shared<spdlog::sinks::stderr_sink_mt>());
    logger->set_pattern("%H:%M:%S %n %l: %v");
    logger->flush_on(spdlog::level::info);
    return logger;
  }();
  return *made;
}

}  // namespace

void set_log_level(const std::string& level) {
  static const std::map<std::string, spdlog::level::level_enum> kLevels = {{"debug", spdlog::level::debug},
                                                                           {"info", spdlog::level::info},
                                                                           {"warning", spdlog::level::warn},
                                                                           {"error", spdlog::level::err},
                                                                           {"critical", spdlog::level::critical}};
  const auto known = kLevels.find(level);
  if (known == kLevels.end()) {
    throw ConfigError(fmt::format(
        "log_level: expected \"debug\", \"info\", \"warning\", \"error\" or \"critical\", got \"{}\"", level));
  }
  logger().set_level(known->second);
}

void log_info(const std::string& message) { logger().info(message); }

void log_warn(const std::string& message) { logger().warn(message); }

bool WarnOnce::warn(const std::string& key, const std::string& message) {
  {
    const std::lock_guard lock(mutex_);
    if (!warned_.insert(key).second) return false;
  }
  log_warn(message);
  return true;
}

}  // namespace zeropage
