/// \file
/// The engine's own kernels for the simulated device.
#pragma once

#include <cstdint>

#include "zeropage/optim/device_kernels.h"

namespace simulated_device {

const zeropage::optim::DeviceKernels* kernels();

/// How often this process has launched a kernel of updates.
std::int64_t update_launches();

}  // namespace simulated_device
