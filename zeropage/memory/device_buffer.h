/// \file
/// Flat memory on a device. On the host these are page-aligned mappings (so freeing returns memory at once, and large
/// buffers use huge pages), page-locked if requested. torch's allocators are used on other devices, and for page-locked
/// memory that we cannot lock ourselves (page_lock.h).
#pragma once

#include "zeropage/memory/torch_config.h"

#include <memory>
#include <optional>

#include <c10/core/Stream.h>

#include "zeropage/base/ledger.h"

namespace zeropage::memory {

/// Where a buffer is, and the tier under which its bytes are counted.
struct MemoryPlace {
  MemoryPlace(c10::Device device, Tier tier = Tier::kDevice, bool pinned = false)
      : device(device), tier(tier), pinned(pinned) {}

  c10::Device device;
  Tier tier;
  bool pinned;  ///< page-locked host memory, which needs a GPU
};

struct PageLock;

/// Before one on a device is freed, the current stream waits for all its users (paging/stream_order.h): the stream that
/// was current when it was made, to which torch's allocator gives the memory again, then waits for that.
class DeviceBuffer {
 public:
  /// Zero-filled. The bytes are counted under `kind`. Errors: IoError when the host has no memory, or cannot lock it,
  /// c10::OutOfMemoryError on a device.
  DeviceBuffer(std::int64_t bytes, MemoryPlace place, std::shared_ptr<Ledger> ledger, MemoryKind kind);
  ~DeviceBuffer();
  DeviceBuffer(const DeviceBuffer&) = delete;
  DeviceBuffer& operator=(const DeviceBuffer&) = delete;

  std::byte* data() const { return data_; }
  std::int64_t bytes() const { return bytes_; }

 private:
  void order_reuse() noexcept;

  std::byte* data_ = nullptr;
  std::int64_t bytes_ = 0;
  at::Tensor device_memory_;            // owns data_ on devices, and if torch's allocator has pinned it
  std::optional<c10::Stream> made_on_;  // of a device
  const PageLock* lock_ = nullptr;      // has locked data_
  LedgerEntry entry_;
};

/// The device's stream that is current in this thread.
c10::Stream current_stream(c10::Device device);

/// A new DeviceBuffer as a DataPtr of torch that owns the memory. Errors: as the constructor.
at::DataPtr make_owned_buffer(std::int64_t bytes, c10::Device device);

/// A tensor over memory that it does not own, which may be null if it is empty; contiguous without `strides`.
at::Tensor view_of(void* data, at::IntArrayRef sizes, at::OptionalIntArrayRef strides, at::ScalarType type,
                   c10::Device device);

/// The same, contiguous [numel].
at::Tensor flat_view(void* data, std::int64_t numel, at::ScalarType type, c10::Device device);

/// Copies bytes from `source_device` to `target_device`; on a device in the order of its current stream. Complete when
/// it returns if one of them is the host.
void copy_bytes(void* target, c10::Device target_device, const void* source, c10::Device source_device,
                std::int64_t bytes);

/// The same, but only started on the current stream if one of them is a device.
void start_copy(void* target, c10::Device target_device, const void* source, c10::Device source_device,
                std::int64_t bytes);

/// The same within one device.
void copy_bytes(void* target, const void* source, std::int64_t bytes, c10::Device device);

/// Returns memory that torch keeps for later allocations to the system, so that other processes can use it. Does
/// nothing on the CPU. Cost: waits for the device.
void release_cached_memory(c10::Device device);

/// Sets bytes to zero, in the order of the device's current stream.
void zero_bytes(void* target, std::int64_t bytes, c10::Device device);

}  // namespace zeropage::memory
