/// \file
/// The formulas of optim/update.h for memory that the host's kernels cannot reach: by kernels of our own on GPUs, where
/// the build has them (optim/device_kernels.h), else in torch's operators.
#pragma once

#include "zeropage/memory/torch_config.h"

#include <vector>

#include "zeropage/engine/host_update.h"

namespace zeropage::engine {

/// update_on_host for arrays on `device`, in the order of its current stream. Own kernels: the same bits, one launch
/// for up to 32 segments, one pass over memory. Torch's operators: within rounding; about ten kernels per segment, each
/// a pass over some of the arrays, and two temporaries; neither packed states nor parameters without masters. Errors:
/// as optim::update.
void update_on_device(const optim::Arrays& range, const std::vector<Segment>& segments, c10::Device device);

/// Whether it takes packed states and parameters without masters on `device`: whether own kernels are there.
bool rounds_on_device(c10::Device device);

}  // namespace zeropage::engine
