#include "zeropage/launch/allocation.h"

#include <fmt/format.h>

#include <algorithm>
#include <numeric>
#include <string_view>

#include "zeropage/base/error.h"
#include "zeropage/base/json_text.h"
#include "zeropage/base/whole_number.h"

namespace zeropage::launch {
namespace {

constexpr std::size_t kMaxHosts = 65'536;

std::optional<int> number_in(const Environment& environment, const char* name) {
  const char* text = environment(name);
  return text ? whole_number(text, 0) : std::nullopt;
}

/// The hosts of one item: text with at most one [...] in it.
void expand_item(std::string_view item, const std::string& list, std::vector<std::string>& hosts) {
  const auto fail = [&] {
    return ConfigError(
        fmt::format("node list {}: expected names such as gpu[01-03,7], got {}", json::quote(list), json::quote(item)));
  };
  const auto add = [&](std::string name) {
    if (!is_host_name(name) || hosts.size() == kMaxHosts) throw fail();
    hosts.push_back(std::move(name));
  };
  const std::size_t open = item.find('['), close = item.find(']');
  if (open == std::string_view::npos) return add(std::string(item));
  if (close == std::string_view::npos || close < open) throw fail();
  const std::string_view before = item.substr(0, open), after = item.substr(close + 1);
  for (std::string_view rest = item.substr(open + 1, close - open - 1);;) {
    const std::string_view range = rest.substr(0, rest.find(','));
    const std::string_view first = range.substr(0, range.find('-'));
    const std::string_view last = range.size() == first.size() ? first : range.substr(first.size() + 1);
    const auto low = whole_number(first, 0), high = whole_number(last, 0);
    // Checked before the first name is made: otherwise a range of millions would take seconds until it is refused.
    if (!low || !high || *high < *low || static_cast<std::size_t>(*high - *low) >= kMaxHosts) throw fail();
    for (int number = *low; number <= *high; ++number) {
      add(fmt::format("{}{:0{}}{}", before, number, first.size(), after));
    }
    if (range.size() == rest.size()) return;
    rest.remove_prefix(range.size() + 1);
  }
}

}  // namespace

std::vector<std::string> expand_node_list(const std::string& list) {
  std::vector<std::string> hosts;
  for (std::string_view rest = list;;) {
    std::size_t end = 0;
    for (int depth = 0; end < rest.size() && (rest[end] != ',' || depth > 0); ++end) {
      depth += (rest[end] == '[') - (rest[end] == ']');
    }
    expand_item(rest.substr(0, end), list, hosts);
    if (end == rest.size()) return hosts;
    rest.remove_prefix(end + 1);
  }
}

std::optional<Task> task_of(const Environment& environment) {
  const auto scheduled = comm::scheduled_world(environment);
  if (!scheduled || scheduled->world.size < 2) return std::nullopt;
  const comm::World& world = scheduled->world;
  Task task{scheduled->starter, world.rank, world.size, world.local_rank, world.local_size};
  if (scheduled->node) {
    task.node = *scheduled->node;
    task.num_nodes = number_in(environment, "SLURM_STEP_NUM_NODES").value_or(1);
    if (const char* list = environment("SLURM_STEP_NODELIST")) task.first_host = expand_node_list(list).front();
  } else {  // ranks are numbered host by host with the same number on each host, or the job is on one host
    task.node = world.rank / world.local_size;
    task.num_nodes = (world.size + world.local_size - 1) / world.local_size;
  }
  return task;
}

std::vector<HostSlots> slurm_hosts(const Environment& environment) {
  const char* list = environment("SLURM_JOB_NODELIST");
  if (!list || !*list) return {};
  std::vector<HostSlots> hosts;
  const auto gpus = number_in(environment, "SLURM_GPUS_ON_NODE");
  const char* per_node = environment("SLURM_TASKS_PER_NODE");
  for (std::string& name : expand_node_list(list)) {
    const int node = static_cast<int>(hosts.size());
    const int slots = gpus ? *gpus : comm::tasks_of_node(per_node ? per_node : "", node).value_or(1);
    hosts.push_back({std::move(name), std::vector<int>(std::clamp(slots, 1, kMaxSlots))});
    std::iota(hosts.back().slots.begin(), hosts.back().slots.end(), 0);
  }
  return hosts;
}

}  // namespace zeropage::launch
