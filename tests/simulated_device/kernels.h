/// \file
/// The engine's own kernels for the simulated device.
#pragma once

#include "zeropage/optim/device_kernels.h"

namespace simulated_device {

const zeropage::optim::DeviceKernels* kernels();

}  // namespace simulated_device
