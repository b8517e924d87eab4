#include "zeropage/engine/staging.h"

#include <c10/core/StreamGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <algorithm>

#include "zeropage/memory/device_buffer.h"
#include "zeropage/paging/device_wait.h"
#include "zeropage/paging/polled_copy.h"
#include "zeropage/paging/stream_order.h"

namespace zeropage::engine {

Staging::Staging(const ModelState& state, const reduce::Reducer& reducer, c10::Device device, memory::MemoryPlace host,
                 const std::shared_ptr<Ledger>& ledger, CopiedPages copied_pages)
    : state_(state),
      reducer_(reducer),
      device_(device),
      host_(host),
      ledger_(ledger),
      copied_pages_(copied_pages),
      slot_(state.layout()->pages().size()) {
  if (!device_.is_cpu()) stream_ = c10::impl::VirtualGuardImpl(device_.type()).getStreamFromGlobalPool(device_);
  grow();
}

void Staging::grow() {
  wait_for_copies();  // from and to the buffers that are replaced
  slot_.resize(state_.layout()->pages().size());
  const auto fill = [&](std::array<Slot, 2>& slots, memory::MemoryPlace place) {
    std::int64_t gradient_bytes = 0;
    std::int64_t parameter_bytes = 0;
    for (const auto& page : state_.layout()->pages()) {
      if (!page.trainable || &slots_of(page.index) != &slots) continue;
      const std::int64_t numel = state_.owned(page.index).numel;
      if (is_gradient_copied(page.index)) gradient_bytes = std::max(gradient_bytes, 4 * numel);
      if (is_parameter_copied(page.index)) parameter_bytes = std::max(parameter_bytes, numel * page.element_bytes);
    }
    for (auto& slot : slots) {
      slot.gradient = std::make_unique<memory::DeviceBuffer>(gradient_bytes, place, ledger_, MemoryKind::kBuffers);
      slot.parameter = std::make_unique<memory::DeviceBuffer>(parameter_bytes, place, ledger_, MemoryKind::kBuffers);
    }
  };
  fill(on_host_, host_);
  fill(on_device_, device_);
}

bool Staging::is_elsewhere(c10::Device place, int page) const {
  return copied_pages_ == CopiedPages::kAlways || place != state_.state_store().device(page);
}

bool Staging::is_gradient_copied(int page) const { return is_elsewhere(reducer_.gradient(page).device, page); }

bool Staging::is_parameter_copied(int page) const { return is_elsewhere(state_.owned(page).device, page); }

std::array<Staging::Slot, 2>& Staging::slots_of(int page) {
  return state_.state_store().device(page).is_cpu() ? on_host_ : on_device_;
}

void Staging::record(std::optional<c10::Event>& event) const {
  if (!stream_) return;
  if (!event) event.emplace(device_.type());
  event->record(*stream_);
}

void Staging::fetch(int page) {
  if (!is_copied(page)) return;
  slot_[page] = next_slot_;
  next_slot_ = 1 - next_slot_;
  auto& slot = slots_of(page)[slot_[page]];
  const c10::Device home = state_.state_store().device(page);
  c10::OptionalStreamGuard guard;
  if (stream_) {
    c10::Event ready(device_.type());
    ready.record(memory::current_stream(device_));
    ready.block(*stream_);
    guard.reset_stream(*stream_);
  }
  const auto& own = state_.owned(page);
  const auto gradient = reducer_.gradient(page);
  constexpr std::string_view kToUpdate = "the copy of gradients for the update";
  if (is_gradient_copied(page) && gradient.data != nullptr) {
    paging::start_polled_copy(slot.gradient->data(), home, gradient.data, gradient.device,
                              own.numel * element_bytes(gradient.dtype), state_.communicator(), kToUpdate);
  }
  if (is_parameter_copied(page) && state_.is_own_master(page)) {
    paging::start_polled_copy(slot.parameter->data(), home, own.parameter, own.device,
                              own.numel * state_.layout()->pages()[page].element_bytes, state_.communicator(),
                              kToUpdate);
  }
  record(slot.fetched);
}

Staging::Location Staging::wait(int page) {
  Location place{reducer_.gradient(page).data, state_.owned(page).parameter};
  if (!is_copied(page)) return place;
  auto& slot = slots_of(page)[slot_[page]];
  if (slot.fetched && state_.state_store().device(page).is_cpu()) {
    paging::wait_for(*slot.fetched, state_.communicator(), "the copy of gradients for the update");
  } else if (slot.fetched) {
    slot.fetched->block(memory::current_stream(device_));
  }
  if (is_gradient_copied(page) && place.gradient != nullptr) place.gradient = slot.gradient->data();
  if (is_parameter_copied(page)) place.parameter = slot.parameter->data();
  return place;
}

void Staging::write_back(int page, const std::vector<UpdateSegment>& runs) {
  if (!is_parameter_copied(page)) return;
  auto& slot = slots_of(page)[slot_[page]];
  const auto& own = state_.owned(page);
  const std::int64_t element = state_.layout()->pages()[page].element_bytes;
  const c10::Device home = state_.state_store().device(page);
  c10::OptionalStreamGuard guard;
  if (stream_) {
    c10::Event updated(device_.type());
    updated.record(memory::current_stream(device_));
    updated.block(*stream_);
    guard.reset_stream(*stream_);
  }
  for (const auto& run : runs) {
    paging::start_polled_copy(own.parameter + run.offset * element, own.device,
                              slot.parameter->data() + run.offset * element, home, run.numel * element,
                              state_.communicator(), "the copy of updated parameters to their place");
  }
  guard.reset();
  record(slot.written_back);
  if (slot.written_back) slot.written_back->block(memory::current_stream(device_));
}

void Staging::wait_for_copies() const {
  if (!stream_) return;
  c10::Event copied(device_.type());
  copied.record(*stream_);
  paging::wait_for(copied, state_.communicator(), "the copy of updated parameters from the host");
}

void Staging::wait_all() {
  for (const auto& slot : on_device_) {
    if (slot.written_back)
      paging::wait_for(*slot.written_back, state_.communicator(), "the copy of updated parameters to the host");
  }
}

}  // namespace zeropage::engine
