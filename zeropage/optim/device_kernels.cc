#include "zeropage/optim/device_kernels.h"

#include <array>
#include <atomic>

#include "zeropage/base/error.h"

namespace zeropage::optim {
namespace {

constexpr std::size_t kDeviceTypes = 64;  // torch has about twenty

std::array<std::atomic<const DeviceKernels*>, kDeviceTypes>& registered() {
  static std::array<std::atomic<const DeviceKernels*>, kDeviceTypes> kernels{};
  return kernels;
}

}  // namespace

void set_device_kernels(int device_type, const DeviceKernels* kernels) {
  if (device_type < 0 || device_type >= static_cast<int>(kDeviceTypes)) {
    throw UsageError("expected torch's number of a device type, got " + std::to_string(device_type));
  }
  registered()[device_type] = kernels;
}

const DeviceKernels* device_kernels(int device_type) { return registered().at(device_type); }

}  // namespace zeropage::optim
