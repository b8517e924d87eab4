#include "zeropage/session/memory_report.h"

#include <cstring>
#include <string>
#include <string_view>

namespace zeropage::session {

RanksMemory gather_memory(const engine::Engine& core, comm::Communicator& communicator,
                          std::array<std::int64_t, 2> client_state) {
  constexpr auto kOptimizer = static_cast<std::size_t>(MemoryKind::kOptimizer);
  std::array<report::RankBytes, 2> mine = {report::measured_bytes(*core.ledger(), Tier::kDevice),
                                           report::measured_bytes(*core.ledger(), Tier::kHost)};
  for (std::size_t tier = 0; tier < mine.size(); ++tier) mine[tier][kOptimizer] += client_state[tier];
  comm::Communicator& job = communicator.job();
  const std::string_view packed(reinterpret_cast<const char*>(mine.data()), sizeof(mine));
  const std::string everyone = comm::all_gather_small(job, packed, {"memory report"});
  RanksMemory ranks;
  for (int rank = 0; rank < job.size(); ++rank) {
    std::memcpy(mine.data(), everyone.data() + rank * sizeof(mine), sizeof(mine));
    ranks.device.push_back(mine[0]);
    ranks.host.push_back(mine[1]);
  }
  return ranks;
}

}  // namespace zeropage::session
