#include "zeropage/cpp/communicators.h"

#include <fmt/format.h>

#include <atomic>
#include <cstdlib>

#include "zeropage/base/error.h"
#include "zeropage/comm/shared_memory_communicator.h"
#include "zeropage/comm/thread_communicator.h"

namespace zeropage::cpp {
namespace {

/// Engines are made in the same order on all ranks, so their number is part of the name under which they meet. It counts what
/// this process did, as the environment says what it is.
std::int64_t next_number() {
  static std::atomic<std::int64_t> made{0};
  return made++;
}

}  // namespace

std::shared_ptr<comm::Communicator> join_ranks(const config::Config& config, const comm::World& world) {
  if (config.own.communicator == config::CommunicatorKind::kC10d || world.local_size != world.size) {
    throw ConfigError(fmt::format(
        "a C++ program joins CPU ranks of one host by itself; here {} of {} ranks are on this host and "
        "zeropage.communicator is "
        "\"{}\": hand a communicator over in Options::communicator, say of comm/c10d_communicator.h",
        world.local_size, world.size, config.own.communicator == config::CommunicatorKind::kC10d ? "c10d" : "auto"));
  }
  const std::chrono::milliseconds timeout(config.own.timeout_ms);
  if (world.size == 1) return std::move(comm::make_thread_communicators(1, timeout)[0]);
  const std::string name =
      comm::segment_name([](const char* variable) { return std::getenv(variable); }, next_number());
  return comm::join_shared_memory(name, world.rank, world.size, timeout);
}

}  // namespace zeropage::cpp
