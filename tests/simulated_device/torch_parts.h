/// \file
/// Functions shared by the files that include torch.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/Storage.h>

#include <string>
#include <vector>

#include "machine.h"

namespace simulated_device {

/// Registers the device as torch's accelerator. Once per process.
void register_hooks();

/// Operators that torch would decompose on an unknown device use their kernels for the CPU, so that the bits are the
/// CPU's.
void prefer_cpu_kernels();

/// Whether torch finds it (torch.accelerator.is_available). Initially it does.
void set_visible(bool value);
bool is_visible();

/// A tensor on the CPU over the private address of a tensor's memory: for tasks. Errors: c10::Error when its memory is
/// not the device's, nor page-locked.
at::Tensor inside_view(const at::Tensor& tensor, int device);

/// A task's use of a tensor's memory.
Use use_of(const at::Tensor& tensor, bool writes);

/// Launches, and waits in the calling thread without counting it as a wait: for things that a device would do by
/// itself.
void run_now(Stream& stream, const std::string& what, const std::vector<Use>& uses, std::function<void()> task);

/// New memory of another size for a storage; the contents are copied as far as they fit.
void resize_storage(const c10::Storage& storage, std::size_t bytes);

}  // namespace simulated_device
