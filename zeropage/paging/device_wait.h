/// \file
/// How the host waits for a device. It never blocks inside of the device's library: an operation that waits for a rank
/// that has failed would hold it there for ever. It asks until the device is done, until a rank has aborted, or until
/// the communicator's timeout.
#pragma once

#include "zeropage/memory/torch_config.h"

#include <string_view>

#include <ATen/core/Tensor.h>
#include <c10/core/Event.h>

#include "zeropage/comm/communicator.h"

namespace zeropage::paging {

/// Returns when what `event` was recorded behind is done. From any thread. Errors: as comm::poll_until.
void wait_for(const c10::Event& event, comm::Communicator& communicator, std::string_view what);

/// Returns when all that the device's current stream was given by now is done; at once on the CPU. Errors: as
/// comm::poll_until.
void wait_for_stream(c10::Device device, comm::Communicator& communicator, std::string_view what);

/// `values` on the host: copied there in the order of the current stream, and waited for. Errors: as comm::poll_until.
at::Tensor fetch(const at::Tensor& values, comm::Communicator& communicator, std::string_view what);

/// Returns when the device is idle: all of its streams. At once on the CPU. Cost: a thread. Errors: as
/// comm::poll_until.
void wait_for_device(c10::Device device, comm::Communicator& communicator, std::string_view what);

/// The same for destructors: what goes wrong becomes a warning. `whose`: "an engine".
void come_to_rest(c10::Device device, comm::Communicator& communicator, std::string_view whose) noexcept;

}  // namespace zeropage::paging
