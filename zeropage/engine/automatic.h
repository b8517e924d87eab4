/// \file
/// The choices of formula/automatic.h made on running ranks: all with the least memory that any of them has.
#pragma once

#include <c10/core/Device.h>

#include "zeropage/comm/communicator.h"
#include "zeropage/config/config.h"
#include "zeropage/formula/automatic.h"

namespace zeropage::engine {

/// What a rank can still take: its device's memory, and its part of the host's available memory. The control group may
/// allow less than the host has. Cost: reads a few small files. Errors: IoError.
formula::FreeMemory free_memory(c10::Device device, int ranks_of_host);

/// What is to be trained. largest_numel: of one parameter.
struct ModelCounts {
  std::int64_t trainable_numel = 0;
  std::int64_t frozen_numel = 0;
  std::int64_t largest_numel = 0;
};

/// `config` with values for all that is "auto"; rank 0 says which and why. Collective where there is something to
/// choose. Errors: those of formula::choose_automatic and of the communicator.
config::Config choose_automatic(const config::Config& config, const ModelCounts& counts, formula::FreeMemory memory,
                                comm::Communicator& communicator);

}  // namespace zeropage::engine
