/// \file
/// Measures the speed of gathering and reducing pages between ranks, with the methods of the engine.
#pragma once

#include <cstdint>

#include "zeropage/comm/communicator.h"

namespace zeropage::comm {

struct LinkFigures {
  double gather_rate = 0;  ///< bytes that a rank receives per second; 0 for one rank
  double reduce_rate = 0;  ///< of a reduce-scatter of 16-bit gradients; 0 for one rank
  double hop_s = 0;        ///< of a collective of a few bytes, divided by its size() - 1 hops
};

/// Gathers and reduces pages of `page_bytes` for about `seconds`, all ranks at the same time. Collective. If peers'
/// memory can be read, a gather is a copy. Memory: twice the page. Errors: those of the communicator.
LinkFigures measure_links(Communicator& communicator, std::int64_t page_bytes, double seconds);

}  // namespace zeropage::comm
