/// \file
/// Exchanges between ranks during saves and loads: strings of any length, and whether all ranks succeeded.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "zeropage/comm/communicator.h"

namespace zeropage::checkpoint {

/// Collective: returns the strings of all ranks, by rank. Cost: two small gathers. Errors: as comm::all_gather_small.
std::vector<std::string> exchange_strings(comm::Communicator& communicator, const std::string& mine);

/// A line for each string that is not empty: "\n  rank 3: disk full".
std::string lines_of_failures(const std::vector<std::string>& by_rank);

/// Collective: runs `work` on every rank and returns every rank's result. When it throws a zeropage::Error on any rank,
/// every rank throws CheckpointError with `what` and the failures of all ranks, after all have finished their work.
std::vector<std::string> run_on_all_ranks(comm::Communicator& communicator, const std::string& what,
                                          const std::function<std::string()>& work);

}  // namespace zeropage::checkpoint
