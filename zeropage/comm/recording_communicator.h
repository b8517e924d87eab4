/// \file
/// A communicator that records every transfer of another one in a timeline.
#pragma once

#include <memory>

#include "zeropage/base/timeline.h"
#include "zeropage/comm/communicator.h"

namespace zeropage::comm {

/// `inner`, with every collective added to `timeline` when its end is detected. Operations are called all_gather,
/// reduce_scatter, all_reduce, broadcast, all_to_all, barrier and exchange (small host bytes). Cost: less than a
/// microsecond per collective.
std::shared_ptr<Communicator> record_transfers(std::shared_ptr<Communicator> inner, std::shared_ptr<Timeline> timeline);

}  // namespace zeropage::comm
