#include "zeropage/engine/automatic.h"

#include <c10/core/CachingDeviceAllocator.h>
#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <fstream>
#include <limits>

#include "zeropage/base/error.h"
#include "zeropage/base/log.h"

namespace zeropage::engine {
namespace {

/// The first number of a file; nothing if the file is missing or begins with a word ("max").
std::optional<std::int64_t> number_in(const char* path) {
  std::ifstream file(path);
  std::int64_t value = 0;
  return file >> value ? std::optional(value) : std::nullopt;
}

std::int64_t available_host_bytes() {
  std::ifstream file("/proc/meminfo");
  std::string name, unit;
  std::int64_t kib = 0;
  while (file >> name >> kib && std::getline(file, unit)) {
    if (name != "MemAvailable:") continue;
    const auto limit = number_in("/sys/fs/cgroup/memory.max");
    const auto taken = number_in("/sys/fs/cgroup/memory.current");
    const std::int64_t available = kib * 1024;
    return std::max<std::int64_t>(0, limit && taken ? std::min(available, *limit - *taken) : available);
  }
  throw IoError("/proc/meminfo: expected a line MemAvailable, got none; write numbers instead of \"auto\"");
}

std::string text_of(const std::variant<std::int64_t, std::string>& value) {
  const auto* number = std::get_if<std::int64_t>(&value);
  return number != nullptr ? std::to_string(*number) : fmt::format("\"{}\"", std::get<std::string>(value));
}

}  // namespace

formula::FreeMemory free_memory(c10::Device device, int ranks_of_host) {
  formula::FreeMemory memory;
  memory.host_bytes = available_host_bytes() / ranks_of_host;
  memory.device_is_host = device.is_cpu();
  memory.device_bytes =
      memory.device_is_host
          ? memory.host_bytes
          : static_cast<std::int64_t>(c10::getDeviceAllocator(device.type())->getMemoryInfo(device.index()).first);
  return memory;
}

config::Config choose_automatic(const config::Config& config, const ModelCounts& counts, formula::FreeMemory memory,
                                comm::Communicator& communicator) {
  if (config.automatic.empty()) return config;
  comm::Communicator& job = communicator.job();
  const std::int64_t mine[] = {memory.device_bytes, memory.host_bytes};
  const std::string all = comm::all_gather_small(job, {reinterpret_cast<const char*>(mine), sizeof(mine)},
                                                 {"free memory for what is \"auto\""});
  for (std::size_t at = 0; at < all.size(); at += sizeof(mine)) {
    std::int64_t theirs[2];
    std::memcpy(theirs, all.data() + at, sizeof(theirs));
    memory.device_bytes = std::min(memory.device_bytes, theirs[0]);
    memory.host_bytes = std::min(memory.host_bytes, theirs[1]);
  }
  config::Planned planned;
  for (const formula::AutoChoice& choice : formula::choose_automatic(
           config, job.size(), {counts.trainable_numel, counts.frozen_numel}, counts.largest_numel, memory)) {
    planned[choice.path] = choice.value;
    if (job.rank() == 0)
      log_info(fmt::format("{}: \"auto\" is {} here: {}", choice.path, text_of(choice.value), choice.reason));
  }
  return config.with_planned(planned);
}

}  // namespace zeropage::engine
