/// \file
/// The hosts, and the devices of them that the job gets. Hostfiles and host names are not trusted: a line that does not
/// match the grammar is refused, with its number.
///
///     line   = host [blanks "slots=" 1..1024] [blanks] ["#" comment]
///     host   = letter or digit, then up to 252 of letters, digits, ".", "_", "-", the last a letter or digit
///            | "[" IPv6 address "]"
///     filter = host [":" slot ("," slot)*] ("@" host [":" slot ("," slot)*])*
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace zeropage::launch {

/// A host and the numbers of its devices (on CPUs: of its ranks).
struct HostSlots {
  std::string name;
  std::vector<int> slots;

  bool operator==(const HostSlots&) const = default;
};

constexpr int kMaxSlots = 1024;

/// Whether `name` is a host of the grammar above.
bool is_host_name(std::string_view name);

/// A host name for ssh and sockets: IPv6 addresses without their brackets.
std::string bare_host(const std::string& name);

/// The hosts of a hostfile, in its order. Errors: ConfigError "path:line: ..." for a line outside the grammar, a
/// repeated host, or no host at all.
std::vector<HostSlots> parse_hostfile(std::string_view text, const std::string& path);

/// One filter expression. No slots: all of that host. Errors: ConfigError naming `option` for one outside the grammar,
/// or a repeated host or slot.
std::vector<HostSlots> parse_filter(std::string_view text, const std::string& option);

/// Selects hosts and slots. At most one of `include`, `exclude` and the two numbers is used.
struct Selection {
  std::string include;
  std::string exclude;
  std::optional<int> num_nodes;  ///< the first so many hosts
  std::optional<int> num_slots;  ///< the first so many slots of each host

  bool empty() const { return include.empty() && exclude.empty() && !num_nodes && !num_slots; }
};

/// The chosen part of `pool`, in the order of the pool. Errors: ConfigError for a host or slot that is not in the pool,
/// more than there are, options that exclude each other, or nothing left.
std::vector<HostSlots> select_slots(const std::vector<HostSlots>& pool, const Selection& selection);

}  // namespace zeropage::launch
