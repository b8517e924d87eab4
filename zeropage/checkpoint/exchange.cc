#include "zeropage/checkpoint/exchange.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <string_view>

#include "zeropage/base/error.h"

namespace zeropage::checkpoint {
namespace {

constexpr char kDone = '+';
constexpr char kFailed = '-';

}  // namespace

std::vector<std::string> exchange_strings(comm::Communicator& communicator, const std::string& mine) {
  const std::uint64_t length = mine.size();
  const std::string lengths =
      comm::all_gather_small(communicator, std::string_view(reinterpret_cast<const char*>(&length), sizeof(length)),
                             comm::Tag{"lengths of checkpoint records", 0});
  std::vector<std::uint64_t> sizes(static_cast<std::size_t>(communicator.size()));
  std::memcpy(sizes.data(), lengths.data(), lengths.size());
  const std::uint64_t longest = *std::max_element(sizes.begin(), sizes.end());
  std::string padded = mine;
  padded.resize(longest, '\0');
  const std::string all = comm::all_gather_small(communicator, padded, comm::Tag{"checkpoint records", 0});
  std::vector<std::string> strings;
  for (std::size_t rank = 0; rank < sizes.size(); ++rank) strings.push_back(all.substr(rank * longest, sizes[rank]));
  return strings;
}

std::string lines_of_failures(const std::vector<std::string>& by_rank) {
  std::string lines;
  for (std::size_t rank = 0; rank < by_rank.size(); ++rank) {
    if (!by_rank[rank].empty()) lines += fmt::format("\n  rank {}: {}", rank, by_rank[rank]);
  }
  return lines;
}

std::vector<std::string> run_on_all_ranks(comm::Communicator& communicator, const std::string& what,
                                          const std::function<std::string()>& work) {
  std::string mine;
  try {
    mine = kDone + work();
  } catch (const PeerError&) {
    throw;
  } catch (const TimeoutError&) {
    throw;
  } catch (const std::exception& error) {
    mine = kFailed + std::string(error.what());
  }
  auto results = exchange_strings(communicator, mine);
  std::vector<std::pair<std::string, std::string>> failures;  // ranks with the same message, and this message
  for (std::size_t rank = 0; rank < results.size(); ++rank) {
    const bool failed = results[rank].front() == kFailed;
    results[rank].erase(0, 1);
    if (!failed) continue;
    const auto same =
        std::find_if(failures.begin(), failures.end(), [&](const auto& f) { return f.second == results[rank]; });
    if (same != failures.end()) {
      same->first += fmt::format(", {}", rank);
    } else {
      failures.emplace_back(fmt::format("rank {}", rank), results[rank]);
    }
  }
  if (failures.empty()) return results;
  std::string message = what;
  for (const auto& [ranks, error] : failures) message += fmt::format("\n  {}: {}", ranks, error);
  throw CheckpointError(message);
}

}  // namespace zeropage::checkpoint
