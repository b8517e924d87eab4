/// \file
/// The formulas of optim/update.h for memory that the host's kernels cannot access: with our own kernels on GPUs, if
/// the build has them (optim/device_kernels.h), else with torch's operators.
#pragma once

#include "zeropage/memory/torch_config.h"

#include <vector>

#include "zeropage/engine/host_update.h"

namespace zeropage::engine {

/// A range and its updated segments, as for update_on_host.
struct RangeUpdate {
  optim::Arrays range;
  std::vector<UpdateSegment> segments;
};

/// update_on_host for each of `ranges`, whose arrays are on `device`, in the order of its current stream. With our own
/// kernels: the same bits, one launch for up to kSegmentsAtOnce segments of the same types, one pass over memory.
/// With torch's operators: the same up to rounding, about ten kernels per segment, each a pass over some of the arrays,
/// and two temporaries; without support for packed states and parameters without masters. Errors: as optim::update.
void update_on_device(const std::vector<RangeUpdate>& ranges, c10::Device device);

constexpr int kSegmentsAtOnce = 32;

/// Whether our own kernels exist for `device`. They support packed states and parameters without masters, and joint
/// launches for several ranges.
bool has_kernels(c10::Device device);

}  // namespace zeropage::engine
