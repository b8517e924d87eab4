/// \file
/// Which stream used a piece of device memory last, so that who uses it on another one comes after it. On the CPU
/// nothing of this does anything, and while the stream is the same it costs nothing.
#pragma once

#include "zeropage/memory/torch_config.h"

#include <optional>

#include <c10/core/Event.h>

namespace zeropage::paging {

class StreamOrder {
 public:
  /// What the device's current stream is given from now on comes after what the streams before it were given.
  void enter(c10::Device device);

  /// `stream` has been given what fills the memory: the next one that enters waits for that alone, and not for what
  /// `stream` gets later.
  void filled_on(const c10::Stream& stream);

  /// What has to be over before somebody else uses the memory; nothing where nobody has.
  std::optional<c10::Event> leave();

 private:
  std::optional<c10::Stream> last_;
  std::optional<c10::Event> filled_;
};

/// The device's stream that is current in this thread.
c10::Stream current_stream(c10::Device device);

/// What the device's current stream was given by now; nothing on the CPU.
std::optional<c10::Event> given_so_far(c10::Device device);

}  // namespace zeropage::paging
