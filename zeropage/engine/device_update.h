/// \file
/// The formulas of optim/update.h for memory that the host's kernels cannot reach: by kernels of our own on GPUs, where
/// the build has them (optim/device_kernels.h), else in torch's operators.
#pragma once

#include "zeropage/memory/torch_config.h"

#include <vector>

#include "zeropage/engine/host_update.h"

namespace zeropage::engine {

/// What is updated of a range, as update_on_host takes it.
struct RangeUpdate {
  optim::Arrays range;
  std::vector<Segment> segments;
};

/// update_on_host for each of `ranges`, whose arrays are on `device`, in the order of its current stream. Own kernels:
/// the same bits, one launch for up to kSegmentsAtOnce segments of the same types, one pass over memory. Torch's
/// operators: within rounding; about ten kernels per segment, each a pass over some of the arrays, and two temporaries;
/// neither packed states nor parameters without masters. Errors: as optim::update.
void update_on_device(const std::vector<RangeUpdate>& ranges, c10::Device device);

constexpr int kSegmentsAtOnce = 32;

/// Whether own kernels are there for `device`: then it takes packed states and parameters without masters, and more
/// ranges need fewer launches.
bool has_kernels(c10::Device device);

}  // namespace zeropage::engine
