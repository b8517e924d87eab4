/// \file
/// Waits of the host for a device. They never block inside the device's library, where an operation that waits for a
/// failed rank would block for ever. They poll until the device is done, a rank has aborted, or the communicator's
/// timeout is over.
///
/// Copies between a device and memory that is not page-locked, and all copies with memory::copy_bytes, make the host
/// wait in the library until the current stream has done its earlier work. `wait_for_stream` comes before those: then
/// only the copy itself is left.
#pragma once

#include "zeropage/memory/torch_config.h"

#include <string_view>

#include <ATen/core/Tensor.h>
#include <c10/core/Event.h>

#include "zeropage/comm/communicator.h"

namespace zeropage::paging {

/// Returns when all work before the recorded `event` is done. From any thread. Errors: as comm::poll_until.
void wait_for(const c10::Event& event, comm::Communicator& communicator, std::string_view what);

/// Returns when all earlier work of the device's current stream is done; immediately on the CPU. Errors: as
/// comm::poll_until.
void wait_for_stream(c10::Device device, comm::Communicator& communicator, std::string_view what);

/// Returns `values` on the host: copies them in the order of the current stream and waits. Errors: as comm::poll_until.
at::Tensor fetch(const at::Tensor& values, comm::Communicator& communicator, std::string_view what);

/// The same for large values: without page-locked memory for them.
at::Tensor to_host(const at::Tensor& values, comm::Communicator& communicator, std::string_view what);

/// Returns when all streams of the device are idle; immediately on the CPU. Cost: a thread. Errors: as
/// comm::poll_until.
void wait_for_device(c10::Device device, comm::Communicator& communicator, std::string_view what);

/// The same for destructors: what goes wrong becomes a warning. `whose`: "an engine".
void come_to_rest(c10::Device device, comm::Communicator& communicator, std::string_view whose) noexcept;

}  // namespace zeropage::paging
