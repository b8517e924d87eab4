/// \file
/// Moves values piece by piece, so that they are in the cache for their next reader.
#pragma once

#include <algorithm>
#include <cstdint>

#include "zeropage/comm/communicator.h"
#include "zeropage/optim/norm.h"

namespace zeropage::reduce {

/// Calls `move(begin, numel)` and `on_reduced(begin, numel)` for one piece after the other; without `on_reduced` for
/// all in one call.
template <typename Move>
void in_pieces(std::int64_t total_numel, const comm::OnReduced& on_reduced, Move&& move) {
  if (!on_reduced) return move(0, total_numel);
  for (std::int64_t begin = 0; begin < total_numel; begin += optim::SquareSum::kBlockNumel) {
    const std::int64_t numel = std::min(optim::SquareSum::kBlockNumel, total_numel - begin);
    move(begin, numel);
    on_reduced(begin, numel);
  }
}

}  // namespace zeropage::reduce
