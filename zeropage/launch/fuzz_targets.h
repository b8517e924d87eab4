/// \file
/// Fuzz targets for the code of the launcher that reads untrusted bytes first: hostfiles, filters, Slurm's lists of
/// hosts, and messages of agents on other hosts. Any result except success or an error of the project is a defect.
/// libFuzzer runs them (fuzz/, make fuzz), and the tests run them with mutations of the same corpus.
#pragma once

#include <string>
#include <string_view>

#include "zeropage/base/error.h"
#include "zeropage/launch/agent.h"
#include "zeropage/launch/allocation.h"
#include "zeropage/launch/hostfile.h"
#include "zeropage/launch/wire.h"

namespace zeropage::launch {

/// `input`: a hostfile, a filter for its hosts, and a list of Slurm's, with an empty line between them.
inline bool accepts_hosts(std::string_view input) {
  std::vector<std::string_view> parts;
  for (std::size_t at = input.find("\n\n"); at != input.npos; at = input.find("\n\n")) {
    parts.push_back(input.substr(0, at));
    input.remove_prefix(at + 2);
  }
  parts.push_back(input);
  const auto part = [&](std::size_t i) { return i < parts.size() ? parts[i] : std::string_view(); };
  bool accepted = true;
  const auto attempt = [&](const auto& body) {
    try {
      body();
    } catch (const ConfigError&) {
      accepted = false;
    }
  };
  attempt([&] {
    const auto pool = parse_hostfile(part(0), "fuzz");
    for (const HostSlots& host : pool) {
      if (!is_host_name(host.name) || host.slots.size() > kMaxSlots) throw std::logic_error("no host: " + host.name);
    }
    Selection selection;
    selection.include = part(1);
    for (const HostSlots& host : select_slots(pool, selection)) {
      if (host.slots.empty()) throw std::logic_error("a host without slots was chosen: " + host.name);
    }
  });
  attempt([&] {
    for (const std::string& name : expand_node_list(std::string(part(2)))) {
      if (!is_host_name(name)) throw std::logic_error("no host: " + name);
    }
  });
  return accepted;
}

/// `input`: a question, a report or ranks (by the first byte), as the other end of an ssh connection sends them. An
/// accepted message must be the same after it was packed and read again.
inline bool accepts_message(std::string_view input) {
  if (input.empty()) return false;
  const auto bytes = input.substr(1);
  const auto require_equal = [](const std::string& once, const std::string& twice) {
    if (once != twice) throw std::logic_error("a message differs after it was packed and read");
  };
  try {
    switch (input[0] % 3) {
      case 0: {
        const std::string once = encode(decode_question(bytes));
        require_equal(once, encode(decode_question(once)));
        break;
      }
      case 1: {
        const std::string once = encode(decode_report(bytes));
        require_equal(once, encode(decode_report(once)));
        break;
      }
      default: {
        const std::string once = encode(decode_ranks(bytes));
        require_equal(once, encode(decode_ranks(once)));
      }
    }
    return true;
  } catch (const IoError&) {
    return false;
  }
}

}  // namespace zeropage::launch
