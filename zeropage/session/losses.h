/// \file
/// The losses of an accumulation window, for reports.
#pragma once

#include "zeropage/memory/torch_config.h"

#include <ATen/core/Tensor.h>

#include <optional>
#include <vector>

#include "zeropage/engine/engine.h"

namespace zeropage::session {

class Losses {
 public:
  /// Adds the loss of a micro step. `first`: it is the first one of its window, so that the earlier losses are dropped.
  void add(const at::Tensor& loss, bool first);

  /// This rank's mean since the last update (of the last update, directly after it); nullopt if the program runs the
  /// backward itself. It waits for the device of `core`; null: the engine has ended. Errors: as
  /// Engine::wait_for_device.
  std::optional<double> mean(const engine::Engine* core) const;

 private:
  std::vector<at::Tensor> losses_;
};

}  // namespace zeropage::session
