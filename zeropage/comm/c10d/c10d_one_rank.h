/// \file
/// The communicator of a job of one rank on any device: no process groups, no store, no peer to wait for.
#pragma once

#include <c10/core/Device.h>

#include <chrono>
#include <memory>

#include "zeropage/comm/communicator.h"

namespace zeropage::comm {

/// Buffers lie on `device` or in host memory; memory of its own is private memory of `device`. What a collective copies
/// or adds on a device is done in the order of its current stream. `timeout`: of wait_until.
std::unique_ptr<Communicator> make_one_rank_communicator(c10::Device device, std::chrono::milliseconds timeout);

}  // namespace zeropage::comm
