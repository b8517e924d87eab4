#include "zeropage/paging/device_buffer.h"

#include <ATen/ops/from_blob.h>
#include <ATen/ops/zeros.h>
#include <fmt/format.h>
#include <sys/mman.h>

#include <cerrno>
#include <cstring>

#include "zeropage/base/error.h"

namespace zeropage::paging {
namespace {

constexpr std::int64_t kHugePageBytes = 2 << 20;

// Huge pages only where rounding up to them cannot show in the memory table.
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

}  // namespace

DeviceBuffer::DeviceBuffer(std::int64_t bytes, MemoryPlace place, std::shared_ptr<Ledger> ledger, MemoryKind kind)
    : bytes_(bytes) {
  if (bytes_ > 0) {
    if (place.device.is_cpu() && !place.pinned) {
      data_ = map_host_memory(bytes_);
    } else {
      const auto options = at::TensorOptions().dtype(at::kByte).device(place.device).pinned_memory(place.pinned);
      device_memory_ = at::zeros({bytes_}, options);
      data_ = static_cast<std::byte*>(device_memory_.data_ptr());
    }
  }
  entry_ = LedgerEntry(std::move(ledger), kind, bytes_, place.tier);
}

DeviceBuffer::~DeviceBuffer() {
  if (data_ != nullptr && !device_memory_.defined()) munmap(data_, bytes_);
}

at::DataPtr make_owned_buffer(std::int64_t bytes, c10::Device device) {
  // No ledger: who asks for this memory is not an engine.
  auto buffer = std::make_unique<DeviceBuffer>(bytes, device, nullptr, MemoryKind::kParameters);
  std::byte* data = buffer->data();
  const auto free_buffer = [](void* context) { delete static_cast<DeviceBuffer*>(context); };
  return {data, buffer.release(), free_buffer, device};
}

at::Tensor flat_view(void* data, std::int64_t numel, at::ScalarType type, c10::Device device) {
  return at::from_blob(data, {numel}, at::TensorOptions().dtype(type).device(device));
}

void copy_bytes(void* target, c10::Device target_device, const void* source, c10::Device source_device,
                std::int64_t bytes) {
  if (bytes == 0 || target == source) return;
  if (target_device.is_cpu() && source_device.is_cpu()) {
    std::memcpy(target, source, bytes);
    return;
  }
  flat_view(target, bytes, at::kByte, target_device)
      .copy_(flat_view(const_cast<void*>(source), bytes, at::kByte, source_device));
}

void copy_bytes(void* target, const void* source, std::int64_t bytes, c10::Device device) {
  copy_bytes(target, device, source, device, bytes);
}

void zero_bytes(void* target, std::int64_t bytes, c10::Device device) {
  if (bytes == 0) return;
  if (device.is_cpu()) {
    std::memset(target, 0, bytes);
    return;
  }
  flat_view(target, bytes, at::kByte, device).zero_();
}

}  // namespace zeropage::paging
