/// \file
/// The calling thread's current device and streams, and torch's stream objects for the machine's streams.
#pragma once

#include <c10/core/Device.h>
#include <c10/core/Stream.h>

#include <vector>

#include "machine.h"

namespace simulated_device {

inline constexpr c10::DeviceType kType = c10::DeviceType::PrivateUse1;

/// Devices on which CUDA would have made a context for this process, with its memory: those on which something was
/// launched or allocated, and those that were current in a thread that recorded, awaited or destroyed an event, or
/// synchronized.
std::vector<int> devices_with_context();
void note_context(int device);

int current_device();
void set_current_device(int device);

/// `device` -1: the current one. Errors: c10::Error when there is no such device.
int device_index(c10::DeviceIndex device);

Stream& current_stream(int device);
void set_current_stream(const Stream& stream);

c10::Stream to_torch(const Stream& stream);
Stream& from_torch(const c10::Stream& stream);

}  // namespace simulated_device
