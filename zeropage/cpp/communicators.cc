#include "zeropage/cpp/communicators.h"

#include <c10/core/impl/VirtualGuardImpl.h>
#include <dlfcn.h>
#include <fmt/format.h>

#include <atomic>
#include <cstdlib>
#include <filesystem>

#include "zeropage/base/error.h"
#include "zeropage/comm/aborts.h"
#include "zeropage/comm/c10d/c10d_job.h"
#include "zeropage/comm/c10d/c10d_one_rank.h"
#include "zeropage/comm/hosts/group_communicator.h"
#include "zeropage/comm/mpi/mpi_library.h"
#include "zeropage/comm/nearby_communicator.h"
#include "zeropage/comm/shm/shared_memory_communicator.h"
#include "zeropage/comm/thread_communicator.h"

namespace zeropage::cpp {
namespace {

/// Engines are made in the same order on all ranks, so their number is part of the name under which they meet. It
/// counts per process, because the rank is a property of the process, too.
std::int64_t next_number() {
  static std::atomic<std::int64_t> made{0};
  return made++;
}

const char* environment(const char* name) { return std::getenv(name); }

/// Loads the library that uses MPI, from the folder of this library. It stays loaded, because MPI can be started only
/// once in a process.
comm::JoinMpiJob* load_mpi_library() {
  Dl_info self{};
  if (::dladdr(reinterpret_cast<const void*>(&load_mpi_library), &self) == 0) throw Error(::dlerror());
  const auto path = std::filesystem::path(self.dli_fname).replace_filename(comm::kMpiLibrary);
  if (!std::filesystem::exists(path)) {
    throw ConfigError(fmt::format(
        "these ranks can only communicate through MPI, and this zeropage was built without it: there is no {}. Build "
        "it where an MPI is installed, or give communicators in Options::communicator and reductions",
        path.string()));
  }
  // Global, because MPI libraries load parts of their own that need its symbols.
  void* library = ::dlopen(path.c_str(), RTLD_NOW | RTLD_GLOBAL);
  if (library == nullptr) throw IoError(fmt::format("cannot load {}: {}", path.string(), ::dlerror()));
  return reinterpret_cast<comm::JoinMpiJob*>(::dlsym(library, comm::kJoinMpiJob));
}

/// The transport of the ranks if the configuration does not set it. MPI between hosts if MPI has started the ranks.
config::CommunicatorKind chosen_kind(const config::Config& config, const comm::World& world, at::Device device) {
  using enum config::CommunicatorKind;
  if (config.zeropage.communicator != kAuto) return config.zeropage.communicator;
  if (!device.is_cpu()) return kC10d;
  if (world.local_size == world.size) return kSharedMemory;
  return environment("RANK") != nullptr ? kC10d : kMpi;
}

/// How the ranks are distributed over hosts, if communicators should use this; otherwise one host.
comm::HostGrid hosts_of(config::CommunicatorKind kind, const config::Config& config, const comm::World& world,
                        at::Device device) {
  // Must be the same on all ranks, although hosts may have different numbers of ranks.
  const bool are_asked = kind == config::CommunicatorKind::kC10d && device.is_cpu() && world.local_size < world.size &&
                         config.zeropage.hierarchical_collectives;
  if (!are_asked) return {1, world.size};
  return comm::hosts_of_c10d_job(world, comm::meeting_from_environment(&environment, world),
                                 comm::token_from_environment(&environment), next_number(),
                                 std::chrono::milliseconds(config.zeropage.timeout_ms));
}

/// Makes one communicator. `aborts`: as for join_c10d_job. `beside`: in shared memory, the communicator that it aborts
/// with; may be null.
std::shared_ptr<comm::Communicator> join(config::CommunicatorKind kind, const config::Config& config,
                                         const comm::World& world, at::Device device, const comm::HostGrid& grid,
                                         std::int64_t aborts, const std::shared_ptr<comm::Communicator>& beside) {
  using enum config::CommunicatorKind;
  const std::chrono::milliseconds timeout(config.zeropage.timeout_ms);
  if (kind == kMpi) {
    std::shared_ptr<comm::Communicator> joined;
    load_mpi_library()({world, timeout, /*share_memory=*/config.zeropage.communicator != kMpi}, joined);
    return joined;
  }
  if (kind == kC10d) {
    const auto meeting = comm::meeting_from_environment(&environment, world);
    const std::string token = comm::token_from_environment(&environment);
    const bool deterministic = config.zeropage.deterministic_reduction;
    const std::int64_t number = next_number();
    if (!grid.is_useful()) {
      return comm::join_c10d_job(world, meeting, token, number, aborts, device, deterministic, timeout);
    }
    return comm::join_c10d_hosts(grid, world, meeting, token, number, aborts, comm::segment_name(&environment, number),
                                 deterministic, timeout);
  }
  const std::string name = comm::segment_name(&environment, next_number());
  return comm::join_shared_memory(name, world.rank, world.size, timeout, beside ? comm::aborts_of(beside) : nullptr);
}

/// The same with the groups of zero_hpz_partition_size.
std::shared_ptr<comm::Communicator> add_nearby(std::shared_ptr<comm::Communicator> all, const config::Config& config,
                                               const comm::World& world, at::Device device, std::int64_t aborts) {
  const std::int64_t count = config.zero.second_shard_ranks;
  const std::int64_t number = next_number();
  if (device.is_cpu()) {
    return comm::join_nearby(std::move(all), world, count, comm::segment_name(&environment, number));
  }
  comm::check_nearby(world, count);
  const int size = static_cast<int>(count);
  const comm::World group{world.rank % size, world.rank % size, size, size};
  // A number of its own for each group: all ranks of the job meet in one store.
  const std::int64_t group_number = number + (static_cast<std::int64_t>(world.rank / size + 1) << 32);
  auto nearby = comm::join_c10d_job(group, comm::meeting_from_environment(&environment, world),
                                    comm::token_from_environment(&environment), group_number, aborts, device,
                                    config.zeropage.deterministic_reduction, all->timeout());
  return comm::with_nearby(std::move(all), std::move(nearby));
}

/// Refuses what hybrid sharding does not support here.
void check_shard_ranks(const config::Config& config, const Options& options, config::CommunicatorKind kind) {
  const std::int64_t count = config.zero.shard_ranks;
  if (options.communicator) {
    const comm::Communicator& given = *options.communicator;
    const std::int64_t size = given.size() == given.job().size() ? 0 : given.size();
    if (size == count) return;
    throw ConfigError(
        fmt::format("zeropage.shard_ranks: expected {}, because Options::communicator has groups of so many ranks (0: "
                    "no groups), got {}; comm::make_group_communicator makes one with groups",
                    size, count));
  }
  if (count == 0 || kind != config::CommunicatorKind::kMpi) return;
  throw ConfigError(fmt::format(
      "zeropage.shard_ranks: expected 0 for ranks that communicate through MPI, got {}; groups of ranks are "
      "for shared memory and process groups",
      count));
}

/// Makes one communicator of ranks in groups. `aborts`: as for join_c10d_job; `shared_aborts`: the same in shared
/// memory, made here if it is null.
std::shared_ptr<comm::Communicator> join_groups(config::CommunicatorKind kind, const config::Config& config,
                                                const comm::World& world, at::Device device, std::int64_t aborts,
                                                std::shared_ptr<comm::Aborts>& shared_aborts) {
  const std::int64_t number = next_number();
  const std::string name = comm::segment_name(&environment, number);
  const std::chrono::milliseconds timeout(config.zeropage.timeout_ms);
  const bool deterministic = config.zeropage.deterministic_reduction;
  if (!device.is_cpu()) {
    return comm::join_c10d_device_groups(
        world, config.zero.shard_ranks, comm::meeting_from_environment(&environment, world),
        comm::token_from_environment(&environment), number, aborts, device, deterministic, timeout);
  }
  if (kind == config::CommunicatorKind::kSharedMemory) {
    if (!shared_aborts) shared_aborts = comm::join_shared_aborts(name, world, timeout);
    return comm::join_shared_groups(name, world, config.zero.shard_ranks, deterministic, timeout, shared_aborts);
  }
  return comm::join_c10d_groups(world, config.zero.shard_ranks, comm::meeting_from_environment(&environment, world),
                                comm::token_from_environment(&environment), number, aborts, name, deterministic,
                                timeout);
}

}  // namespace

comm::World world_of(const Options& options) {
  if (!options.communicator) return comm::world_from_environment(&environment);
  const int rank = options.communicator->job().rank();
  const int size = options.communicator->job().size();
  return {rank, rank, size, size};
}

at::Device device_of(const Options& options) {
  const at::Device device = options.device.value_or(at::Device(at::kCPU));
  if (device.is_cpu()) return device;
  if (!c10::impl::hasDeviceGuardImpl(device.type())) {
    throw ConfigError(
        fmt::format("Options::device is {}, but the libtorch of this program was built without {}: link one that "
                    "supports it, or leave Options::device out to train on the CPU",
                    device.str(), c10::DeviceTypeName(device.type())));
  }
  const c10::impl::VirtualGuardImpl devices(device.type());
  const int count = devices.deviceCount();
  if (count == 0 || device.index() >= count) {
    throw ConfigError(fmt::format(
        "Options::device is {}, and this process sees {} such devices (CUDA_VISIBLE_DEVICES?)", device.str(), count));
  }
  return device.has_index() ? device : devices.getDevice();
}

Communicators join_ranks(const config::Config& config, const comm::World& world, const Options& options) {
  using enum config::CommunicatorKind;
  const at::Device device = device_of(options);
  const auto kind = chosen_kind(config, world, device);
  check_shard_ranks(config, options, kind);
  if (options.communicator) return {options.communicator, options.reductions, options.saves};
  const std::chrono::milliseconds timeout(config.zeropage.timeout_ms);
  if (world.size == 1) {
    const auto alone = [&]() -> std::shared_ptr<comm::Communicator> {
      if (device.is_cpu()) return std::move(comm::make_thread_communicators(1, timeout)[0]);
      return comm::make_one_rank_communicator(device, timeout);
    };
    return {alone(), nullptr, config.zeropage.async_save ? alone() : nullptr};
  }
  if (!device.is_cpu() && kind != kC10d) {
    throw ConfigError(fmt::format(
        "the model is on {}: ranks on GPUs communicate through process groups; set zeropage.communicator to "
        "\"auto\" or \"c10d\"",
        device.str()));
  }
  if (kind == kSharedMemory && world.local_size != world.size) {
    throw ConfigError(fmt::format(
        "zeropage.communicator is \"shared_memory\", which is for the ranks of one host; {} of {} ranks are on "
        "this one: write \"auto\", \"c10d\" or \"mpi\"",
        world.local_size, world.size));
  }
  const bool in_groups = config.zero.shard_ranks > 0;
  const comm::HostGrid grid = in_groups ? comm::HostGrid() : hosts_of(kind, config, world, device);
  const std::int64_t aborts = next_number();
  std::shared_ptr<comm::Aborts> shared_aborts;
  Communicators joined;
  const auto next = [&](std::int64_t with) {
    return in_groups ? join_groups(kind, config, world, device, with, shared_aborts)
                     : join(kind, config, world, device, grid, with, joined.parameters);
  };
  joined.parameters = next(aborts);
  if (config.zero.second_shard_ranks > 1 && !joined.parameters->one_sided()) {
    joined.parameters = add_nearby(joined.parameters, config, world, device, aborts);
  }
  const bool on_disk = config.zero.offload.parameters == config::OffloadDevice::kNvme;
  if (!joined.parameters->one_sided() || on_disk) joined.gradients = next(aborts);
  if (config.zeropage.async_save) {  // a failed save ends no training
    shared_aborts = nullptr;
    joined.saves = in_groups ? join_groups(kind, config, world, device, next_number(), shared_aborts)
                             : join(kind, config, world, device, grid, next_number(), nullptr);
  }
  return joined;
}

}  // namespace zeropage::cpp
