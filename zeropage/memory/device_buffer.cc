#include "zeropage/memory/device_buffer.h"

#include <ATen/DeviceAccelerator.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/zeros.h>
#include <c10/core/Event.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <fmt/format.h>
#include <sys/mman.h>

#include <bit>
#include <cerrno>
#include <cstring>
#include <exception>

#include "zeropage/base/error.h"
#include "zeropage/base/log.h"
#include "zeropage/memory/page_lock.h"

namespace zeropage::memory {
namespace {

constexpr std::int64_t kHugePageBytes = 2 << 20;

// Huge pages are used only if rounding up to them is too small to be visible in the memory table.
constexpr std::int64_t kHugePageThresholdBytes = 32 * kHugePageBytes;

std::byte* map_host_memory(std::int64_t bytes) {
  void* mapped = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapped == MAP_FAILED) {
    throw IoError(
        fmt::format("cannot map {} bytes of host memory: {}; reduce the model, or raise the memory limit "
                    "(ulimit -v, cgroup)",
                    bytes, std::strerror(errno)));
  }
  if (bytes >= kHugePageThresholdBytes) madvise(mapped, bytes, MADV_HUGEPAGE);
  return static_cast<std::byte*>(mapped);
}

/// If this fails, the memory is freed.
void page_lock_memory(const PageLock& lock, std::byte* data, std::int64_t bytes) {
  constexpr unsigned kForAllDevices = 1;  // cudaHostRegisterPortable
  const int status = lock.lock(data, static_cast<std::size_t>(bytes), kForAllDevices);
  if (status == 0) return;
  lock.forget();
  munmap(data, bytes);
  throw IoError(
      fmt::format("cannot page-lock {} bytes of host memory: {}; offload less, or set pin_memory to false in "
                  "zero_optimization.offload_optimizer and offload_param, which makes copies slower",
                  bytes, lock.describe(status)));
}

}  // namespace

DeviceBuffer::DeviceBuffer(std::int64_t bytes, MemoryPlace place, std::shared_ptr<Ledger> ledger, MemoryKind kind)
    : bytes_(bytes) {
  if (bytes_ > 0) {
    const PageLock* lock = place.pinned ? page_lock() : nullptr;
    if (place.device.is_cpu() && (!place.pinned || lock != nullptr)) {
      data_ = map_host_memory(bytes_);
      if (lock != nullptr) page_lock_memory(*lock, data_, bytes_);
      lock_ = lock;
    } else {
      const auto options = at::TensorOptions().dtype(at::kByte).device(place.device).pinned_memory(place.pinned);
      device_memory_ = at::zeros({bytes_}, options);
      if (!place.device.is_cpu()) made_on_ = current_stream(place.device);
      data_ = static_cast<std::byte*>(device_memory_.data_ptr());
    }
  }
  // torch's page-locked memory is rounded up to the next power of two.
  const bool rounded = place.pinned && device_memory_.defined();
  const auto taken = rounded ? static_cast<std::int64_t>(std::bit_ceil(static_cast<std::uint64_t>(bytes_))) : bytes_;
  entry_ = LedgerEntry(std::move(ledger), kind, taken, place.tier);
}

DeviceBuffer::~DeviceBuffer() {
  if (made_on_) order_reuse();
  if (data_ == nullptr || device_memory_.defined()) return;
  if (lock_ != nullptr) lock_->unlock(data_);
  munmap(data_, bytes_);
}

void DeviceBuffer::order_reuse() noexcept {
  try {
    const c10::Stream current = current_stream(made_on_->device());
    if (current == *made_on_) return;
    c10::Event freed(made_on_->device_type());
    freed.record(current);
    freed.block(*made_on_);
  } catch (const std::exception& error) {
    log_warn(fmt::format("memory of a device is freed, and its streams do not answer: {}", error.what()));
  }
}

c10::Stream current_stream(c10::Device device) { return c10::impl::VirtualGuardImpl(device.type()).getStream(device); }

at::DataPtr make_owned_buffer(std::int64_t bytes, c10::Device device) {
  // No ledger: this memory does not belong to an engine.
  auto buffer = std::make_unique<DeviceBuffer>(bytes, device, nullptr, MemoryKind::kParameters);
  std::byte* data = buffer->data();
  const auto free_buffer = [](void* context) { delete static_cast<DeviceBuffer*>(context); };
  return {data, buffer.release(), free_buffer, device};
}

at::Tensor view_of(void* data, at::IntArrayRef sizes, at::OptionalIntArrayRef strides, at::ScalarType type,
                   c10::Device device) {
  // The device is given explicitly: CUDA cannot find it from a null pointer or from one past the end, which empty
  // tensors have.
  return at::for_blob(data, sizes)
      .strides(strides)
      .options(at::TensorOptions().dtype(type).device(device))
      .target_device(device)
      .make_tensor();
}

at::Tensor flat_view(void* data, std::int64_t numel, at::ScalarType type, c10::Device device) {
  return view_of(data, {numel}, std::nullopt, type, device);
}

namespace {

void copy_anywhere(void* target, c10::Device target_device, const void* source, c10::Device source_device,
                   std::int64_t bytes, bool non_blocking) {
  if (bytes == 0 || target == source) return;
  if (target_device.is_cpu() && source_device.is_cpu()) {
    std::memcpy(target, source, bytes);
    return;
  }
  flat_view(target, bytes, at::kByte, target_device)
      .copy_(flat_view(const_cast<void*>(source), bytes, at::kByte, source_device), non_blocking);
}

}  // namespace

void copy_bytes(void* target, c10::Device target_device, const void* source, c10::Device source_device,
                std::int64_t bytes) {
  copy_anywhere(target, target_device, source, source_device, bytes, /*non_blocking=*/false);
}

void start_copy(void* target, c10::Device target_device, const void* source, c10::Device source_device,
                std::int64_t bytes) {
  copy_anywhere(target, target_device, source, source_device, bytes, /*non_blocking=*/true);
}

void copy_bytes(void* target, const void* source, std::int64_t bytes, c10::Device device) {
  copy_bytes(target, device, source, device, bytes);
}

void release_cached_memory(c10::Device device) {
  if (!device.is_cpu()) at::getDeviceAllocator(device.type())->emptyCache();
}

void zero_bytes(void* target, std::int64_t bytes, c10::Device device) {
  if (bytes == 0) return;
  if (device.is_cpu()) {
    std::memset(target, 0, bytes);
    return;
  }
  flat_view(target, bytes, at::kByte, device).zero_();
}

}  // namespace zeropage::memory
