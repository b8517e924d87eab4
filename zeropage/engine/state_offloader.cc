#include "zeropage/engine/state_offloader.h"

#include <c10/core/GradMode.h>
#include <fmt/format.h>

#include "zeropage/base/error.h"
#include "zeropage/paging/device_wait.h"

namespace zeropage::engine {

void StateOffloader::move_out(const StateKinds& which, memory::MemoryPlace host) {
  c10::AutoGradMode no_grad(false);
  if (reducer_.anything_arrived()) {
    throw UsageError(
        "offload_states() was called with gradients that no step has used; call it after the step() that ends the "
        "update, or drop them with zero_grad()");
  }
  communicator_.barrier(comm::Tag{"offloading states", 0});
  if (!offloaded_.parameters) state_.take_user_writes();
  if (which.parameters && !offloaded_.parameters) {
    state_.unload_parameters(host);
    offloaded_.parameters = true;
  }
  if (which.optimizer && !offloaded_.optimizer) {
    state_.state_store().unload();
    offloaded_.optimizer = true;
  }
  if (which.gradients && !offloaded_.gradients) {
    reducer_.unload();
    offloaded_.gradients = true;
  }
}

void StateOffloader::move_back() {
  c10::AutoGradMode no_grad(false);
  if (offloaded_.parameters || offloaded_.optimizer || offloaded_.gradients) {
    paging::wait_for_stream(state_.device(), communicator_, "the copy of states from the host");
  }
  if (offloaded_.parameters) state_.reload_parameters();
  if (offloaded_.optimizer) state_.state_store().reload();
  if (offloaded_.gradients) reducer_.reload();
  offloaded_ = {false, false, false};
}

void StateOffloader::require_resident(std::string_view caller) const {
  if (!offloaded_.parameters && !offloaded_.optimizer && !offloaded_.gradients) return;
  throw UsageError(
      fmt::format("{}() needs state that offload_states() has moved to the host; call reload_states() first", caller));
}

}  // namespace zeropage::engine
