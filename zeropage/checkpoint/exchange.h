/// \file
/// What ranks tell each other around a checkpoint: strings of any length, and whether all went well.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "zeropage/comm/communicator.h"

namespace zeropage::checkpoint {

/// Collective: every rank's text, by rank. Two small gathers. Errors: those of comm::all_gather_small.
std::vector<std::string> exchange_texts(comm::Communicator& communicator, const std::string& mine);

/// Collective: runs `work` on every rank and returns every rank's result. When it throws anywhere (any zeropage::Error)
/// every rank throws CheckpointError with `what` and the failures of all ranks, once all have ended their part.
std::vector<std::string> run_on_all_ranks(comm::Communicator& communicator, const std::string& what,
                                          const std::function<std::string()>& work);

}  // namespace zeropage::checkpoint
