/// \file
/// The update kernels on all of torch's threads. Results do not depend on their number.
#pragma once

#include <cstdint>
#include <vector>

#include "zeropage/optim/update.h"

namespace zeropage::engine {

/// Consecutive elements of an owned range that belong to one parameter, and its step.
struct UpdateSegment {
  std::int64_t offset = 0;  ///< elements from the start of the range
  std::int64_t numel = 0;
  optim::Step step;
  std::int64_t block = 0;          ///< the first block of its packed states
  const void* gradient = nullptr;  ///< its address, unless it is in the range

  /// The segment's part of a range's arrays.
  optim::Arrays of(const optim::Arrays& range) const;

  bool operator==(const UpdateSegment&) const = default;
};

/// Updates the segments (ascending, disjoint) of `range`, whose arrays begin at the range's start. Threads split the
/// range between cache lines, and segments with packed states between blocks. Cost and errors: as optim::update.
void update_on_host(const optim::Arrays& range, const std::vector<UpdateSegment>& segments);

}  // namespace zeropage::engine
