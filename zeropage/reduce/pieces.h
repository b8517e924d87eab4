/// \file
/// Moving values piece by piece, so that whoever looks at them next finds them in the cache.
#pragma once

#include <algorithm>
#include <cstdint>

#include "zeropage/comm/communicator.h"
#include "zeropage/optim/norm.h"

namespace zeropage::reduce {

/// Calls `move(begin, numel)` and `written(begin, numel)` for one piece after the other; without `written` for all at once.
template <typename Move>
void in_pieces(std::int64_t total_numel, const comm::Written& written, Move&& move) {
  if (!written) return move(0, total_numel);
  for (std::int64_t begin = 0; begin < total_numel; begin += optim::SquareSum::kBlockNumel) {
    const std::int64_t numel = std::min(optim::SquareSum::kBlockNumel, total_numel - begin);
    move(begin, numel);
    written(begin, numel);
  }
}

}  // namespace zeropage::reduce
