#include "zeropage/engine/state_offloader.h"

#include <c10/core/GradMode.h>
#include <fmt/format.h>

#include "zeropage/base/error.h"

namespace zeropage::engine {

void StateOffloader::move_out(const StateKinds& which, memory::MemoryPlace host) {
  c10::AutoGradMode no_grad(false);
  if (reducer_.anything_arrived()) {
    throw UsageError(
        "offload_states() was called with gradients that no step has used; call it after the step() that ends the "
        "update, or forget them with zero_grad()");
  }
  communicator_.barrier(comm::Tag{"offloading states", 0});
  if (!away_.parameters) state_.take_user_writes();
  if (which.parameters && !away_.parameters) {
    state_.unload_parameters(host);
    away_.parameters = true;
  }
  if (which.optimizer && !away_.optimizer) {
    state_.state_store().unload();
    away_.optimizer = true;
  }
  if (which.gradients && !away_.gradients) {
    reducer_.unload();
    away_.gradients = true;
  }
}

void StateOffloader::move_back() {
  c10::AutoGradMode no_grad(false);
  if (away_.parameters) state_.reload_parameters();
  if (away_.optimizer) state_.state_store().reload();
  if (away_.gradients) reducer_.reload();
  away_ = {false, false, false};
}

void StateOffloader::require_resident(std::string_view caller) const {
  if (!away_.parameters && !away_.optimizer && !away_.gradients) return;
  throw UsageError(
      fmt::format("{}() needs state that offload_states() has moved to the host; call reload_states() first", caller));
}

}  // namespace zeropage::engine
