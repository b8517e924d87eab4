/// \file
/// Moves state off the device temporarily, to make room for other work (generation between updates, evaluation of
/// another model), and back. All of it is collective: memory that peers read is freed and allocated again.
///
///   1. The ranks synchronize: from here on no rank reads a peer's shards.
///   2. Users' writes since the last step become part of the state, and frames are returned.
///   3. Masters, moments and parameters are copied to the host, and their memory on the device is freed. Buffers of
///      gradients are only freed: between two updates nothing is in them.
///   4. Until everything is back, the engine does not train, and accesses to parameters raise an error that says so.
#pragma once

#include <memory>
#include <string_view>

#include "zeropage/comm/communicator.h"
#include "zeropage/engine/engine.h"
#include "zeropage/engine/model_state.h"
#include "zeropage/reduce/reducer.h"

namespace zeropage::engine {

class StateOffloader {
 public:
  StateOffloader(ModelState& state, reduce::Reducer& reducer, comm::Communicator& communicator)
      : state_(state), reducer_(reducer), communicator_(communicator) {}

  /// Moves the state of `which` that is still on the device. Errors: UsageError while gradients wait for a step, or
  /// parameters are held by a gather; IoError when the host has no memory.
  void move_out(const StateKinds& which, memory::MemoryPlace host);

  /// Moves everything back. Errors: those of allocation on the device.
  void move_back();

  /// Errors: UsageError while anything is offloaded. `caller` is named in the message.
  void require_resident(std::string_view caller) const;

 private:
  ModelState& state_;
  reduce::Reducer& reducer_;
  comm::Communicator& communicator_;
  StateKinds offloaded_{false, false, false};
};

}  // namespace zeropage::engine
