/// \file
/// Notices an optimizer of the program's that the engine does not know: an `optimizer.step()` that was left in the loop
/// changes parameters between the last backward of a window and the engine's step, and the engine's own update comes on
/// top of it.
///
///   1. At the end of that backward a few parameters with gradients, spread over the model, are noted: what says that
///      somebody has written them.
///   2. The step looks whether most of them were written since.
///
/// An optimizer that the program gave to the engine writes in the step itself, or forgets what was noted (LBFGS,
/// edits).
///
/// Not noticed: writes past torch's version counters (torch::optim::SGD) into fp32 parameters that are whole and on a
/// device other than the CPU.
#pragma once

#include "zeropage/memory/torch_config.h"

#include <array>
#include <cstdint>
#include <vector>

#include "zeropage/engine/model_state.h"

namespace zeropage::engine {

class SecondUpdate {
 public:
  explicit SecondUpdate(ModelState& state) : state_(state) {}

  /// Gradients of a window are complete. Cost: a few parameters, whatever the model.
  void note();

  /// Whether most of the noted parameters were written since; forgets them.
  bool happened();

  void forget() { marks_.clear(); }

 private:
  using Values = std::array<std::uint8_t, 64>;
  struct Mark {
    int parameter = 0;
    bool written = false;  ///< before it was noted
    std::uint32_t version = 0;
    Values values = {};  ///< some bytes, where they are always there
  };
  Mark mark_of(int parameter) const;
  bool is_written(int parameter) const;

  ModelState& state_;
  std::vector<Mark> marks_;
};

}  // namespace zeropage::engine
