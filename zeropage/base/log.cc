#include "zeropage/base/log.h"

#include <spdlog/logger.h>
#include <spdlog/sinks/stdout_sinks.h>

#include <memory>

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
