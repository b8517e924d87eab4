/// \file
/// Makes the choices of formula/automatic.h on running ranks, for the smallest free memory of any rank.
#pragma once

#include <c10/core/Device.h>

#include "zeropage/comm/communicator.h"
#include "zeropage/config/config.h"
#include "zeropage/formula/automatic.h"

namespace zeropage::engine {

/// Memory that a rank can still allocate: its device's free memory, and its part of the host's available memory, which
/// a control group may limit. Cost: reads a few small files. Errors: IoError.
formula::FreeMemory free_memory(c10::Device device, int ranks_of_host);

/// The model to train. largest_numel: elements of the largest parameter.
struct ModelCounts {
  std::int64_t trainable_numel = 0;
  std::int64_t frozen_numel = 0;
  std::int64_t largest_numel = 0;
};

/// `config` with values for every "auto"; rank 0 logs the values and the reasons. Collective if there is something to
/// choose. Errors: those of formula::choose_automatic and of the communicator.
config::Config choose_automatic(const config::Config& config, const ModelCounts& counts, formula::FreeMemory memory,
                                comm::Communicator& communicator);

}  // namespace zeropage::engine
