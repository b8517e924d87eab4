/// \file
/// A c10d backend for the simulated device, that behaves like NCCL: collectives run on a separate stream, after the
/// earlier tasks of the current stream; wait() makes the current stream wait for them, and the host continues.
#pragma once

#include <torch/csrc/distributed/c10d/Backend.hpp>

#include <string>
#include <vector>

namespace simulated_device {

/// `gloo` moves the bytes. `host_waits`: behaves like Gloo instead, whose wait() returns when all is done.
c10::intrusive_ptr<c10d::Backend> make_backend(const c10::intrusive_ptr<c10d::Backend>& gloo, bool host_waits);

/// The collectives that this process has started since the last call, in order: "backend 2: allgather of 64 bytes".
/// Backends are numbered as they were made.
std::vector<std::string> take_starts();

}  // namespace simulated_device
