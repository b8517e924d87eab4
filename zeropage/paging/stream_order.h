/// \file
/// Remembers which stream used a piece of device memory last, so that its use on another stream comes later. It does
/// nothing on the CPU, and has no cost while the stream is the same.
#pragma once

#include "zeropage/memory/torch_config.h"

#include <optional>

#include <c10/core/Event.h>

namespace zeropage::paging {

class StreamOrder {
 public:
  /// Orders later work of the device's current stream after the earlier work of the previous streams.
  void enter(c10::Device device);

  /// Call when the work that fills the memory was added to `stream`: the next stream to enter waits only for that, and
  /// not for later work of `stream`.
  void filled_on(const c10::Stream& stream);

  /// The event that must be over before another use of the memory; nothing if it was not used.
  std::optional<c10::Event> leave();

 private:
  std::optional<c10::Stream> last_;
  std::optional<c10::Event> filled_;
};

/// An event after all earlier work of the device's current stream; nothing on the CPU.
std::optional<c10::Event> event_after_current_work(c10::Device device);

}  // namespace zeropage::paging
