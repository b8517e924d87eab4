/// \file
/// Frames: buffers that temporarily contain a gathered page or a page's gradients. The pool reuses freed memory, so
/// that a step neither maps nor zeroes memory again. It never keeps more than its limit plus the requested frame.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <vector>

#include <c10/core/Event.h>

#include "zeropage/comm/communicator.h"
#include "zeropage/memory/device_buffer.h"

namespace zeropage::paging {

class FramePool {
 public:
  virtual ~FramePool() = default;

  /// Memory for `bytes`, contents undefined, for the device's current stream. Errors: as memory::DeviceBuffer.
  virtual std::byte* acquire(std::int64_t bytes) = 0;

  /// Returns a frame of `acquire`; its memory is kept for the next one, whose use comes after `used` (see StreamOrder).
  virtual void release(std::byte* frame, std::optional<c10::Event> used = {}) = 0;

  /// Returns all unused memory to the system.
  virtual void trim() = 0;
};

/// Frames that only this rank reads and writes: one buffer each; unused ones are kept while all frames together are
/// within `limit_bytes`. On a device a few unused ones may be kept while another one is made, to avoid waiting for a
/// frame that is still in use.
std::unique_ptr<FramePool> make_private_frame_pool(c10::Device device, std::int64_t limit_bytes,
                                                   std::shared_ptr<Ledger> ledger, MemoryKind kind);

/// Frames that peers read in place: parts (first fit, lowest address first) of one Memory of the communicator with
/// `capacity_bytes` of address space. Only used parts need memory.
std::unique_ptr<FramePool> make_shared_frame_pool(comm::Communicator& communicator, std::int64_t capacity_bytes,
                                                  std::shared_ptr<Ledger> ledger, MemoryKind kind);

}  // namespace zeropage::paging
