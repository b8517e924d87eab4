#include "zeropage/launch/hostfile.h"

#include <arpa/inet.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <numeric>

#include "zeropage/base/error.h"
#include "zeropage/base/json_text.h"
#include "zeropage/base/whole_number.h"
#include "zeropage/launch/text_lines.h"

namespace zeropage::launch {
namespace {

constexpr std::size_t kMaxNameBytes = 253;
constexpr std::string_view kBlanks = " \t";

bool is_alnum(char c) { return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); }

std::string_view trimmed(std::string_view text) {
  const std::size_t first = text.find_first_not_of(kBlanks);
  if (first == std::string_view::npos) return {};
  return text.substr(first, text.find_last_not_of(kBlanks) - first + 1);
}

const HostSlots* find_host(const std::vector<HostSlots>& hosts, const std::string& name) {
  const auto found = std::find_if(hosts.begin(), hosts.end(), [&](const HostSlots& h) { return h.name == name; });
  return found == hosts.end() ? nullptr : &*found;
}

HostSlots parse_line(std::string_view line, const std::string& where) {
  const std::size_t name_bytes = std::min(line.find_first_of(kBlanks), line.size());
  const std::string_view rest = trimmed(line.substr(name_bytes));
  HostSlots host{std::string(line.substr(0, name_bytes)), {}};
  if (line.front() == '-') {
    throw ConfigError(fmt::format("{}: {}: a host must not begin with '-', because programs would read it as an option",
                                  where, json::quote(line)));
  }
  if (!is_host_name(host.name)) {
    throw ConfigError(
        fmt::format("{}: expected a host name (letters, digits, '.', '_', '-') or [IPv6 address], then slots=N; got {}",
                    where, json::quote(line)));
  }
  int slots = 1;
  if (!rest.empty()) {
    const bool names_slots = rest.substr(0, 6) == "slots=";
    const auto number = names_slots ? whole_number(rest.substr(6), 1, kMaxSlots) : std::nullopt;
    if (!number) {
      throw ConfigError(fmt::format("{}: expected slots=N, N from 1 to {}, after the host {}; got {}", where, kMaxSlots,
                                    host.name, json::quote(rest)));
    }
    slots = *number;
  }
  host.slots.resize(slots);
  std::iota(host.slots.begin(), host.slots.end(), 0);
  return host;
}

/// Parses "host[:slot,slot]" without comparing it with a pool.
HostSlots parse_filter_item(std::string_view item, const std::string& option) {
  const auto fail = [&](const std::string& why) {
    return ConfigError(
        fmt::format("{} {}: {}; expected for example worker-0@worker-1:0,2", option, json::quote(item), why));
  };
  const std::size_t bracket = item.find(']');
  const std::size_t colon = item.find(':', bracket == std::string_view::npos ? 0 : bracket);
  HostSlots host{std::string(trimmed(item.substr(0, colon))), {}};
  if (!is_host_name(host.name)) throw fail("this is no host name");
  if (colon == std::string_view::npos) return host;
  for (std::string_view rest = item.substr(colon + 1);;) {
    const std::string_view text = rest.substr(0, rest.find(','));
    const auto slot = whole_number(trimmed(text), 0, kMaxSlots - 1);
    if (!slot) throw fail(fmt::format("{} is no slot number", json::quote(text)));
    if (std::count(host.slots.begin(), host.slots.end(), *slot)) throw fail(fmt::format("slot {} is repeated", *slot));
    host.slots.push_back(*slot);
    if (text.size() == rest.size()) return host;
    rest.remove_prefix(text.size() + 1);
  }
}

void check_filter(const std::vector<HostSlots>& pool, const std::vector<HostSlots>& filter, const std::string& option) {
  for (const HostSlots& wanted : filter) {
    const HostSlots* host = find_host(pool, wanted.name);
    if (!host) {
      std::vector<std::string> names;
      for (const HostSlots& one : pool) names.push_back(one.name);
      throw ConfigError(
          fmt::format("{}: there is no host {}; the hosts are {}", option, wanted.name, fmt::join(names, ", ")));
    }
    for (int slot : wanted.slots) {
      if (std::count(host->slots.begin(), host->slots.end(), slot)) continue;
      throw ConfigError(
          fmt::format("{}: host {} has no slot {}; it has {}", option, wanted.name, slot, fmt::join(host->slots, ",")));
    }
  }
}

void check_exclusive(const Selection& selection) {
  if (!selection.include.empty() && !selection.exclude.empty()) {
    throw ConfigError("--include and --exclude exclude each other; give one of them");
  }
  const bool numbers = selection.num_nodes || selection.num_slots;
  if (numbers && (!selection.include.empty() || !selection.exclude.empty())) {
    throw ConfigError("--num_nodes and --num_gpus cannot be combined with --include or --exclude; give one kind");
  }
}

std::vector<HostSlots> take_first(std::vector<HostSlots> pool, const Selection& selection) {
  if (selection.num_nodes) {
    if (*selection.num_nodes > static_cast<int>(pool.size())) {
      throw ConfigError(fmt::format("--num_nodes {}: there are {} hosts; ask for fewer or add hosts to the hostfile",
                                    *selection.num_nodes, pool.size()));
    }
    pool.resize(*selection.num_nodes);
  }
  for (HostSlots& host : pool) {
    if (!selection.num_slots) break;
    if (*selection.num_slots > static_cast<int>(host.slots.size())) {
      throw ConfigError(
          fmt::format("--num_gpus {}: host {} has {} slots; ask for fewer or raise slots= in the hostfile",
                      *selection.num_slots, host.name, host.slots.size()));
    }
    host.slots.resize(*selection.num_slots);
  }
  return pool;
}

}  // namespace

bool is_host_name(std::string_view name) {
  if (name.size() > 2 && name.front() == '[' && name.back() == ']') {
    in6_addr address{};
    return ::inet_pton(AF_INET6, std::string(name.substr(1, name.size() - 2)).c_str(), &address) == 1;
  }
  return !name.empty() && name.size() <= kMaxNameBytes && is_alnum(name.front()) && is_alnum(name.back()) &&
         std::all_of(name.begin(), name.end(), [](char c) { return is_alnum(c) || c == '.' || c == '_' || c == '-'; });
}

std::string bare_host(const std::string& name) { return name.front() == '[' ? name.substr(1, name.size() - 2) : name; }

std::vector<HostSlots> parse_hostfile(std::string_view text, const std::string& path) {
  std::vector<HostSlots> hosts;
  int number = 0;
  while (!text.empty()) {
    std::string_view line = take_line(text);
    ++number;
    line = trimmed(line.substr(0, line.find('#')));
    if (line.empty()) continue;
    HostSlots host = parse_line(line, fmt::format("{}:{}", path, number));
    if (find_host(hosts, host.name)) {
      throw ConfigError(fmt::format("{}:{}: host {} is repeated; name every host once and raise its slots=", path,
                                    number, host.name));
    }
    hosts.push_back(std::move(host));
  }
  if (hosts.empty())
    throw ConfigError(fmt::format("{}: it names no host; write lines such as: worker-0 slots=4", path));
  return hosts;
}

std::vector<HostSlots> parse_filter(std::string_view text, const std::string& option) {
  std::vector<HostSlots> hosts;
  while (true) {
    const std::string_view item = text.substr(0, text.find('@'));
    HostSlots host = parse_filter_item(item, option);
    if (find_host(hosts, host.name)) {
      throw ConfigError(fmt::format("{}: host {} is repeated; list its slots together", option, host.name));
    }
    hosts.push_back(std::move(host));
    if (item.size() == text.size()) return hosts;
    text.remove_prefix(item.size() + 1);
  }
}

std::vector<HostSlots> select_slots(const std::vector<HostSlots>& pool, const Selection& selection) {
  check_exclusive(selection);
  if (selection.include.empty() && selection.exclude.empty()) return take_first(pool, selection);
  const bool including = !selection.include.empty();
  const std::string option = including ? "--include" : "--exclude";
  const auto filter = parse_filter(including ? selection.include : selection.exclude, option);
  check_filter(pool, filter, option);
  std::vector<HostSlots> chosen;
  for (const HostSlots& host : pool) {
    const HostSlots* named = find_host(filter, host.name);
    HostSlots kept{host.name, {}};
    for (int slot : host.slots) {
      const bool is_named =
          named && (named->slots.empty() || std::count(named->slots.begin(), named->slots.end(), slot));
      if (is_named == including) kept.slots.push_back(slot);
    }
    if (!kept.slots.empty()) chosen.push_back(std::move(kept));
  }
  if (chosen.empty()) throw ConfigError("--exclude leaves no host and no slot; exclude less");
  return chosen;
}

}  // namespace zeropage::launch
