/// \file
/// Flat memory on a device: page-aligned mappings on the host (so that freeing gives memory back at once, and large
/// buffers sit on huge pages), page-locked where that is asked for; torch's allocators elsewhere, and for page-locked
/// memory where we cannot lock (page_lock.h).
#pragma once

#include "zeropage/memory/torch_config.h"

#include <memory>

#include "zeropage/base/ledger.h"

namespace zeropage::memory {

/// Where a buffer is, and on whose account.
struct MemoryPlace {
  MemoryPlace(c10::Device device, Tier tier = Tier::kDevice, bool pinned = false)
      : device(device), tier(tier), pinned(pinned) {}

  c10::Device device;
  Tier tier;
  bool pinned;  ///< page-locked host memory, which needs a GPU
};

struct PageLock;

class DeviceBuffer {
 public:
  /// Zero-filled. `kind` says under which name the bytes are counted. Errors: IoError when the host has no memory, or
  /// cannot lock it, c10::OutOfMemoryError on a device.
  DeviceBuffer(std::int64_t bytes, MemoryPlace place, std::shared_ptr<Ledger> ledger, MemoryKind kind);
  ~DeviceBuffer();
  DeviceBuffer(const DeviceBuffer&) = delete;
  DeviceBuffer& operator=(const DeviceBuffer&) = delete;

  std::byte* data() const { return data_; }
  std::int64_t bytes() const { return bytes_; }

 private:
  std::byte* data_ = nullptr;
  std::int64_t bytes_ = 0;
  at::Tensor device_memory_;        // owns data_ on devices, and where torch's allocator has pinned it
  const PageLock* lock_ = nullptr;  // holds data_
  LedgerEntry entry_;
};

/// A new DeviceBuffer as torch's pointer that owns its memory. Errors: as the constructor's.
at::DataPtr make_owned_buffer(std::int64_t bytes, c10::Device device);

/// A tensor over memory that somebody else owns, which may be null where it is empty; without `strides` contiguous.
at::Tensor view_of(void* data, at::IntArrayRef sizes, at::OptionalIntArrayRef strides, at::ScalarType type,
                   c10::Device device);

/// The same, contiguous [numel].
at::Tensor flat_view(void* data, std::int64_t numel, at::ScalarType type, c10::Device device);

/// Copies bytes from `source_device` to `target_device`; on a device in the order of its current stream. Complete when
/// it returns if one of them is the host.
void copy_bytes(void* target, c10::Device target_device, const void* source, c10::Device source_device,
                std::int64_t bytes);

/// The same, but it is only started on the current stream, where one of them is a device.
void start_copy(void* target, c10::Device target_device, const void* source, c10::Device source_device,
                std::int64_t bytes);

/// The same within one device.
void copy_bytes(void* target, const void* source, std::int64_t bytes, c10::Device device);

/// Gives memory that torch keeps for later allocations back to the system, where other processes get it. Nothing on the
/// CPU. Cost: waits for the device.
void release_cached_memory(c10::Device device);

/// Sets bytes to zero, in the order of the device's current stream.
void zero_bytes(void* target, std::int64_t bytes, c10::Device device);

}  // namespace zeropage::memory
