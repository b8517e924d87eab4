#include "zeropage/paging/stream_order.h"

#include <utility>

#include "zeropage/memory/device_buffer.h"

namespace zeropage::paging {
namespace {

c10::Event event_after_work(const c10::Stream& stream) {
  c10::Event event(stream.device_type());
  event.record(stream);
  return event;
}

}  // namespace

std::optional<c10::Event> event_after_current_work(c10::Device device) {
  if (device.is_cpu()) return std::nullopt;
  return event_after_work(memory::current_stream(device));
}

void StreamOrder::enter(c10::Device device) {
  if (device.is_cpu()) return;
  const c10::Stream current = memory::current_stream(device);
  if (filled_) {
    filled_->block(current);
    filled_.reset();
  } else if (last_ && *last_ != current) {
    event_after_work(*last_).block(current);
  }
  last_ = current;
}

void StreamOrder::filled_on(const c10::Stream& stream) {
  filled_ = event_after_work(stream);
  last_.reset();
}

std::optional<c10::Event> StreamOrder::leave() {
  auto over = std::exchange(filled_, std::nullopt);
  if (!over && last_) over = event_after_work(*last_);
  last_.reset();
  return over;
}

}  // namespace zeropage::paging
