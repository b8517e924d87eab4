/// \file
/// The communicator of a job of one rank on any device: no process groups, no store, no peer to wait for.
#pragma once

#include <c10/core/Device.h>

#include <chrono>
#include <memory>

#include "zeropage/comm/communicator.h"

namespace zeropage::comm {

/// Buffers are on `device` or in host memory; the communicator's memory is private memory of `device`. Collectives copy
/// and add on a device in the order of its current stream. `timeout`: of wait_until.
std::unique_ptr<Communicator> make_one_rank_communicator(c10::Device device, std::chrono::milliseconds timeout);

}  // namespace zeropage::comm
