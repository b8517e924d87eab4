/// \file
/// Copies between a device and the host during which the host never blocks in the device's library
/// (paging/device_wait.h).
#pragma once

#include "zeropage/memory/torch_config.h"

#include <cstdint>
#include <string_view>

#include <c10/core/Device.h>

#include "zeropage/comm/communicator.h"

namespace zeropage::paging {

/// As memory::start_copy. If one side is host memory that is not page-locked, the device's library would make the host
/// wait for the earlier work of the current stream: then it polls for that first, and only the copy itself is left.
/// `what`: for the message. Errors: as comm::poll_until.
void start_polled_copy(void* target, c10::Device target_device, const void* source, c10::Device source_device,
                       std::int64_t bytes, comm::Communicator& communicator, std::string_view what);

}  // namespace zeropage::paging
