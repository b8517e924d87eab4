#include "zeropage/engine/agreement.h"

#include <ATen/Version.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cstring>
#include <sstream>
#include <string_view>

#include "zeropage/base/digest.h"
#include "zeropage/base/error.h"
#include "zeropage/base/log.h"

namespace zeropage::engine {
namespace {

struct Header {
  double sum_of_squares;
  std::int64_t overflow_parameter;
  std::uint64_t trace_hash;
  StepFlags flags;
};

std::string first_difference(int rank, const std::string& mine, const std::string& rank0) {
  std::istringstream a(mine), b(rank0);
  std::string line_a, line_b;
  for (;;) {
    const bool has_a = static_cast<bool>(std::getline(a, line_a));
    const bool has_b = static_cast<bool>(std::getline(b, line_b));
    if (!has_a) line_a = "(nothing)";
    if (!has_b) line_b = "(nothing)";
    if (line_a != line_b || (!has_a && !has_b)) {
      return fmt::format("rank 0 has \"{}\", rank {} has \"{}\"", line_b, rank, line_a);
    }
  }
}

}  // namespace

std::optional<std::string> difference_between_ranks(comm::Communicator& communicator, const std::string& text) {
  comm::Communicator& job = communicator.job();
  const std::uint64_t facts[2] = {hash64(text), text.size()};
  const std::string_view mine(reinterpret_cast<const char*>(facts), sizeof(facts));
  const std::string all = comm::all_gather_small(job, mine, comm::Tag{"comparison of model and configuration", 0});
  std::vector<int> different;
  for (int rank = 1; rank < job.size(); ++rank) {
    if (std::memcmp(all.data(), all.data() + rank * sizeof(facts), sizeof(facts)) != 0) different.push_back(rank);
  }
  if (different.empty()) return std::nullopt;
  const auto length_of = [&](int rank) {
    std::uint64_t theirs[2];
    std::memcpy(theirs, all.data() + rank * sizeof(facts), sizeof(facts));
    return theirs[1];
  };
  std::uint64_t longest = 0;
  for (int rank = 0; rank < job.size(); ++rank) longest = std::max(longest, length_of(rank));
  std::string padded = text;
  padded.resize(longest);
  const std::string strings = comm::all_gather_small(job, padded, comm::Tag{"models and configurations", 0});
  const auto text_of = [&](int rank) { return strings.substr(rank * longest, length_of(rank)); };
  const int first = different.front();
  return fmt::format("rank(s) {} differ from rank 0; {}", fmt::join(different, ", "),
                     first_difference(first, text_of(first), text_of(0)));
}

void require_same_everywhere(comm::Communicator& communicator, const std::string& text) {
  const auto difference = difference_between_ranks(communicator, text);
  if (!difference) return;
  throw PeerError(
      fmt::format("ranks were started with different models or configurations: {}. Build the same model from the same "
                  "configuration on every rank.",
                  *difference));
}

void warn_of_different_software(comm::Communicator& communicator) {
  std::string software = fmt::format("zeropage {}\n{}", ZEROPAGE_VERSION, at::show_config());
  std::ranges::replace(software, ',', '\n');  // the last line is a long list
  const auto difference = difference_between_ranks(communicator, software);
  if (!difference || communicator.job().rank() != 0) return;
  log_warn(fmt::format(
      "ranks run different software or use different instructions of their processors: {}. The same operators may give "
      "other bits there, so that copies of a parameter on different ranks can drift apart; install the "
      "same versions, and set the same ATEN_CPU_CAPABILITY, on all hosts",
      *difference));
}

void require_same_writes(comm::Communicator& communicator, const layout::Layout& layout,
                         const std::vector<bool>& written, const std::function<std::string(int parameter)>& digest) {
  constexpr std::size_t kDigits = 16;
  comm::Communicator& job = communicator.job();
  std::string mine;
  for (const bool page : written) mine.push_back(page ? '1' : '0');
  const std::string pages = comm::all_gather_small(job, mine, comm::Tag{"pages written outside an update", 0});
  std::vector<int> parameters;
  for (const auto& page : layout.pages()) {
    for (int rank = 0; rank < job.size(); ++rank) {
      if (pages[rank * mine.size() + static_cast<std::size_t>(page.index)] == '0') continue;
      for (const auto& place : page.placements) parameters.push_back(place.parameter);
      break;
    }
  }
  std::string digests;
  for (const int parameter : parameters) digests += digest(parameter);
  const std::string all = comm::all_gather_small(job, digests, comm::Tag{"digests of written parameters", 0});
  for (std::size_t i = 0; i < parameters.size(); ++i) {
    const auto of_rank = [&](int rank) {
      return std::string_view(all).substr(rank * digests.size() + i * kDigits, kDigits);
    };
    for (int rank = 1; rank < job.size(); ++rank) {
      if (of_rank(rank) == of_rank(0)) continue;
      const auto page = static_cast<std::size_t>(layout.page_of(parameters[i]));
      std::vector<int> writers;
      for (int r = 0; r < job.size(); ++r) {
        if (pages[r * mine.size() + page] == '1') writers.push_back(r);
      }
      throw PeerError(
          fmt::format("parameter '{}' was written outside an update on rank(s) {}, and is not the same on ranks 0 and "
                      "{}; write the same values on every rank "
                      "(load_state_dict on all of them), or inside `with zeropage.zero.GatheredParameters(parameters, "
                      "modifier_rank=0)`, "
                      "which gives one rank's values to all. Nothing was updated",
                      layout.parameters()[parameters[i]].name, fmt::join(writers, ", "), rank));
    }
  }
}

std::int64_t first_parameter(std::int64_t one, std::int64_t other) {
  if (one < 0 || other < 0) return std::max(one, other);
  return std::min(one, other);
}

GlobalCheck agree_on_step(comm::Communicator& communicator, const LocalCheck& mine) {
  comm::Communicator& job = communicator.job();
  std::string packed(sizeof(Header), '\0');
  const Header header{mine.sum_of_squares, mine.overflow_parameter, mine.trace_hash, mine.flags};
  std::memcpy(packed.data(), &header, sizeof(header));
  const std::string all = comm::all_gather_small(job, packed, comm::Tag{"global check of the step", 0});

  GlobalCheck global_check;
  global_check.traces_agree = true;
  for (int rank = 0; rank < job.size(); ++rank) {
    const char* part = all.data() + rank * packed.size();
    Header theirs;
    std::memcpy(&theirs, part, sizeof(theirs));
    // Every group has all sums. All ranks use those of the first group, so that they decide alike in any case.
    if (rank < communicator.size()) global_check.sum_of_squares += theirs.sum_of_squares;
    global_check.overflow_parameter = first_parameter(global_check.overflow_parameter, theirs.overflow_parameter);
    global_check.flags.save_failed |= theirs.flags.save_failed;
    global_check.flags.stop_requested |= theirs.flags.stop_requested;
    global_check.flags.calls |= theirs.flags.calls;
    global_check.flags.wrote |= theirs.flags.wrote;
    global_check.traces_agree &= theirs.trace_hash == mine.trace_hash;
  }
  return global_check;
}

}  // namespace zeropage::engine
