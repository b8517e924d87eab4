/// \file
/// The bytes of model state that the ranks hold, for the memory tables of Python and C++.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "zeropage/comm/communicator.h"
#include "zeropage/engine/engine.h"
#include "zeropage/report/memory_table.h"

namespace zeropage::session {

struct RanksMemory {
  std::vector<report::RankBytes> device;  ///< index = rank; of frames the peak
  std::vector<report::RankBytes> host;    ///< the bytes that are offloaded to the host
};

/// Every rank's counted bytes. Collective: one exchange of 80 bytes per rank. `client_state`: bytes that the program's
/// optimizer object keeps on this rank, on the device and on the host, which the engine does not count. Errors: as
/// comm::all_gather_small.
RanksMemory gather_memory(const engine::Engine& core, comm::Communicator& communicator,
                          std::array<std::int64_t, 2> client_state);

}  // namespace zeropage::session
