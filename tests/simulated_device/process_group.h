/// \file
/// A c10d backend for the simulated device, in the manner of NCCL: collectives run on a stream of their own, after what
/// the current stream has been given; wait() has the current stream wait for them, and the host goes on.
#pragma once

#include <torch/csrc/distributed/c10d/Backend.hpp>

namespace simulated_device {

/// `gloo` moves the bytes. `host_waits`: in the manner of Gloo instead, whose wait() returns when all is done.
c10::intrusive_ptr<c10d::Backend> make_backend(const c10::intrusive_ptr<c10d::Backend>& gloo, bool host_waits);

}  // namespace simulated_device
