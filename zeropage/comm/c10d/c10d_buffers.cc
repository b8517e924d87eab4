#include "zeropage/comm/c10d/c10d_buffers.h"

#include <ATen/Context.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/zeros.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <string>

#include "zeropage/comm/c10d/c10d_dtype.h"
#include "zeropage/comm/reduce_kernels.h"
#include "zeropage/comm/shm/mapped_region.h"

namespace zeropage::comm {
namespace {

class HostMemory final : public Memory {
 public:
  HostMemory(std::int64_t bytes, std::string_view label) : region_(-1, bytes, std::string(label).c_str()) {}
  std::byte* data() const override { return region_.data(); }
  std::int64_t bytes() const override { return region_.bytes(); }
  void discard(std::int64_t offset, std::int64_t length) override { region_.discard(offset, length); }

 private:
  MappedRegion region_;
};

/// Parts of device memory cannot be freed: discarded parts are set to zero and stay allocated.
class DeviceMemory final : public Memory {
 public:
  DeviceMemory(std::int64_t bytes, c10::Device device)
      : tensor_(at::zeros({bytes}, at::TensorOptions().dtype(at::kByte).device(device))) {}
  std::byte* data() const override { return static_cast<std::byte*>(tensor_.data_ptr()); }
  std::int64_t bytes() const override { return tensor_.numel(); }
  void discard(std::int64_t offset, std::int64_t length) override { tensor_.narrow(0, offset, length).zero_(); }

 private:
  at::Tensor tensor_;
};

}  // namespace

at::Tensor wrap(const void* data, std::int64_t numel, DType dtype, c10::Device device) {
  const auto options = at::TensorOptions().dtype(scalar_type_of(dtype)).device(device);
  if (numel == 0) return at::empty({0}, options);
  return at::for_blob(const_cast<void*>(data), {numel}).options(options).target_device(device).make_tensor();
}

c10::Device device_of(const void* pointer, c10::Device device) {
  if (device.is_cpu()) return device;
  const auto& library = at::globalContext().getAcceleratorHooksInterface(device.type());
  // CUDA names a device for page-locked memory of the host, too.
  if (library.isPinnedPtr(pointer)) return c10::Device(c10::kCPU);
  try {
    library.getDeviceFromPtr(const_cast<void*>(pointer));
  } catch (const c10::Error&) {
    return c10::Device(c10::kCPU);
  }
  return device;
}

void take_own(const at::Tensor& sent, void* out, std::int64_t numel, DType in_dtype, DType out_dtype, bool accumulate,
              const OnReduced& on_reduced) {
  const bool in_place = sent.const_data_ptr() == out && in_dtype == out_dtype && !accumulate;
  if (!in_place) {
    sum_received(sent, 1, out, numel, in_dtype, out_dtype, accumulate, on_reduced);
  } else if (on_reduced && sent.device().is_cpu()) {
    on_reduced(0, numel);
  }
}

void sum_received(const at::Tensor& received, std::int64_t count, void* out, std::int64_t numel, DType in_dtype,
                  DType out_dtype, bool accumulate, const OnReduced& on_reduced, const std::byte* start) {
  if (numel == 0) return;
  if (received.device().is_cpu()) {
    const auto* const terms = static_cast<const std::byte*>(received.data_ptr());
    reduce_consecutive(terms, count, static_cast<std::byte*>(out), numel, in_dtype, out_dtype, accumulate, on_reduced,
                       start);
    return;
  }
  const DType sum_dtype = sum_dtype_of(in_dtype);
  const at::Tensor terms = received.view(scalar_type_of(in_dtype)).view({count, numel});
  at::Tensor target = wrap(out, numel, out_dtype, received.device());
  at::Tensor sum = start != nullptr ? wrap(start, numel, sum_dtype, received.device()) : terms[0];
  const std::int64_t next = start != nullptr ? 0 : 1;
  if (next < count) {
    const bool in_target = out_dtype == sum_dtype && !accumulate;
    sum = in_target ? target.copy_(sum) : sum.to(scalar_type_of(sum_dtype), /*non_blocking=*/false, /*copy=*/true);
    for (std::int64_t r = next; r < count; ++r) sum.add_(terms[r]);
    if (in_target) return;
  }
  accumulate ? target.add_(sum) : target.copy_(sum);
}

void note_use(const at::Tensor& tensor) {
  const c10::Device device = tensor.device();
  if (!device.is_cpu()) tensor.record_stream(c10::impl::VirtualGuardImpl(device.type()).getStream(device));
}

std::unique_ptr<Memory> make_private_memory(std::int64_t bytes, c10::Device device, std::string_view label) {
  if (device.is_cpu()) return std::make_unique<HostMemory>(bytes, label);
  return std::make_unique<DeviceMemory>(bytes, device);
}

}  // namespace zeropage::comm
