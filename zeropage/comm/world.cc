#include "zeropage/comm/world.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <unistd.h>

#include <algorithm>
#include <optional>
#include <string_view>
#include <utility>
#include <vector>

#include "zeropage/base/digest.h"
#include "zeropage/base/error.h"
#include "zeropage/base/json_text.h"
#include "zeropage/base/whole_number.h"

namespace zeropage::comm {
namespace {

constexpr const char* kLaunchHint =
    "launch with `zeropage --num_gpus=N PROGRAM` or `torchrun --nproc_per_node=N PROGRAM`, which set all of them, or "
    "unset all of them to run as a single rank";

constexpr const char* kMeetingHint =
    "the launcher and torchrun set both; under mpirun or srun on several hosts give every rank the address and a free "
    "port of rank 0's host: mpirun -x MASTER_ADDR=HOST -x MASTER_PORT=29500, srun --export=ALL,MASTER_ADDR=HOST,...";
constexpr int kFirstMadePort = 20'000;
constexpr int kMadePorts = 10'000;
constexpr std::size_t kTokenDigits = 32;

/// One launcher's names of the four variables.
struct Names {
  const char* rank;
  const char* local_rank;
  const char* size;
  const char* local_size;
};

constexpr Names kTorchNames{"RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"};

// A variable that is set only in the ranks, not in the shell of an allocation, shows which launcher started them.
constexpr Names kMpiNames[] = {
    {"OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE"},
    {"PMI_RANK", "MPI_LOCALRANKID", "PMI_SIZE", "MPI_LOCALNRANKS"},
};
constexpr Names kSlurmNames{"SLURM_PROCID", "SLURM_LOCALID", "SLURM_STEP_NUM_TASKS", "SLURM_STEP_TASKS_PER_NODE"};

using Found = std::vector<std::pair<std::string, std::optional<std::string>>>;

std::optional<std::string> get(const Environment& environment, const char* name) {
  const char* value = environment(name);
  return value ? std::optional<std::string>(value) : std::nullopt;
}

std::string list_given(const Found& found) {
  std::vector<std::string> given;
  for (const auto& [name, value] : found) {
    if (value) given.push_back(name + "=" + *value);
  }
  return fmt::format("{}", fmt::join(given, ", "));
}

int to_int(const std::string& text, const Found& found) {
  if (const auto value = whole_number(text)) return *value;
  throw ConfigError(fmt::format("expected integers in {}: {}", list_given(found), kLaunchHint));
}

/// found: rank, local rank, size, local size, then further required variables.
World read_world(const Found& found) {
  std::vector<std::string> missing;
  for (const auto& [name, value] : found) {
    if (!value) missing.push_back(name);
  }
  if (!missing.empty()) {
    throw ConfigError(
        fmt::format("the environment has {} but not {}: {}", list_given(found), fmt::join(missing, ", "), kLaunchHint));
  }
  const auto number = [&](int i) { return to_int(*found[i].second, found); };
  const World world{number(0), number(1), number(2), number(3)};
  const bool ranks_fit = 0 <= world.rank && world.rank < world.size;
  const bool local_ranks_fit = 0 <= world.local_rank && world.local_rank < world.local_size;
  if (!ranks_fit || !local_ranks_fit || world.local_size > world.size) {
    throw ConfigError(
        fmt::format("the ranks in the environment contradict each other ({}): {}", list_given(found), kLaunchHint));
  }
  return world;
}

Found look_up(const Environment& environment, const Names& names) {
  return {{names.rank, get(environment, names.rank)},
          {names.local_rank, get(environment, names.local_rank)},
          {names.size, get(environment, names.size)},
          {names.local_size, get(environment, names.local_size)}};
}

/// A number that is the same for the ranks of this job and almost certainly different for other jobs: from the
/// launcher's token, or from other variables that identify the job.
std::uint64_t job_digest(const Environment& environment) {
  std::string identity = token_from_environment(environment);
  if (identity.empty()) {
    for (const char* name : {"MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT",
                             "PMIX_NAMESPACE", "PMIX_SERVER_URI2", "PMI_JOBID", "SLURM_JOB_ID", "SLURM_STEP_ID"}) {
      identity += get(environment, name).value_or("") + "|";
    }
  }
  return hash64(identity);  // it needs to differ, not to be hard to guess: only this user may join
}

}  // namespace

std::optional<int> tasks_of_node(std::string_view list, int node) {
  while (!list.empty()) {
    const std::string_view item = list.substr(0, list.find(','));
    const std::size_t times = item.find("(x");
    const auto count = whole_number(item.substr(0, times));
    const auto repeat = times == std::string_view::npos || item.back() != ')'
                            ? std::optional<int>(1)
                            : whole_number(item.substr(times + 2, item.size() - times - 3));
    if (!count || !repeat || *repeat < 1) return std::nullopt;
    if (node < *repeat) return count;
    node -= *repeat;
    list.remove_prefix(std::min(item.size() + 1, list.size()));
  }
  return std::nullopt;
}

std::optional<ScheduledWorld> scheduled_world(const Environment& environment) {
  for (const Names& names : kMpiNames) {
    if (!environment(names.rank)) continue;
    Found found = look_up(environment, names);
    if (found[2].second == "1" && !found[1].second && !found[3].second) {  // alone: some leave these out
      found[1].second = "0";
      found[3].second = "1";
    }
    return ScheduledWorld{"mpirun", read_world(found)};
  }
  if (!environment(kSlurmNames.size) || !environment(kSlurmNames.rank)) return std::nullopt;
  Found found = look_up(environment, kSlurmNames);
  const int node = to_int(get(environment, "SLURM_NODEID").value_or("0"), found);
  if (found[3].second) {
    const auto tasks = tasks_of_node(*found[3].second, node);
    found[3].second = tasks ? std::optional(std::to_string(*tasks)) : std::nullopt;
  }
  return ScheduledWorld{"srun", read_world(found), node};
}

World world_from_environment(const Environment& environment) {
  Found found = look_up(environment, kTorchNames);
  if (found[0].second || found[1].second || found[2].second) {
    if (!found[3].second) found[3].second = get(environment, "LOCAL_SIZE");
    if (found[2].second != "1") {
      for (const char* name : {"MASTER_ADDR", "MASTER_PORT"}) found.emplace_back(name, get(environment, name));
    }
    return read_world(found);
  }
  const auto scheduled = scheduled_world(environment);
  return scheduled ? scheduled->world : World{};
}

Meeting meeting_from_environment(const Environment& environment, const World& world) {
  const Found found = {{"MASTER_ADDR", get(environment, "MASTER_ADDR")},
                       {"MASTER_PORT", get(environment, "MASTER_PORT")}};
  const auto& address = found[0].second;
  const auto& port = found[1].second;
  if (!address && !port && world.local_size == world.size) {
    return {"127.0.0.1", static_cast<std::uint16_t>(kFirstMadePort + job_digest(environment) % kMadePorts)};
  }
  if (!address && !port) {
    throw ConfigError(fmt::format(
        "the environment has neither MASTER_ADDR nor MASTER_PORT, and the {} ranks are on several hosts: {}",
        world.size, kMeetingHint));
  }
  if (!address || !port) {
    throw ConfigError(fmt::format("the environment has {} but not {}: {}", list_given(found),
                                  address ? "MASTER_PORT" : "MASTER_ADDR", kMeetingHint));
  }
  if (address->empty() || address->find_first_of(std::string_view(" \t\n/", 4)) != address->npos) {
    throw ConfigError(fmt::format("MASTER_ADDR={}, expected the name or the address of rank 0's host: {}",
                                  json::quote(*address), kMeetingHint));
  }
  const auto number = whole_number(*port);
  if (!number || *number < 1 || *number > 65535) {
    throw ConfigError(
        fmt::format("MASTER_PORT={}, expected a port from 1 to 65535: {}", json::quote(*port), kMeetingHint));
  }
  Meeting meeting{*address, static_cast<std::uint16_t>(*number)};
  // torchrun keeps one store for all attempts of a job, and sets the variables of c10d's own rendezvous.
  meeting.is_open = get(environment, "TORCHELASTIC_USE_AGENT_STORE") == "True";
  if (meeting.is_open) meeting.prefix = get(environment, "TORCHELASTIC_RESTART_COUNT").value_or("0") + "/";
  return meeting;
}

std::string token_from_environment(const Environment& environment) {
  const std::string token = get(environment, "ZEROPAGE_JOB_TOKEN").value_or("");
  const bool is_token = token.size() == kTokenDigits && token.find_first_not_of("0123456789abcdef") == token.npos;
  if (token.empty() || is_token) return token;
  throw ConfigError(fmt::format(
      "ZEROPAGE_JOB_TOKEN={}, expected {} hexadecimal digits, as the launcher sets it for all ranks of a job: {}",
      json::quote(token), kTokenDigits, kLaunchHint));
}

std::string segment_name(const Environment& environment, std::int64_t number) {
  return fmt::format("zp-{}-{:016x}-{}", ::getuid(), job_digest(environment), number);
}

}  // namespace zeropage::comm
