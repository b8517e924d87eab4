/// \file
/// Detects an optimizer of the program that the engine does not know: an `optimizer.step()` left in the loop changes
/// parameters between the last backward of a window and the engine's step, and the engine's own update is then added to
/// it.
///
///   1. At the end of that backward a few parameters with gradients, spread over the model, are recorded with values
///      that change when they are written.
///   2. The step checks whether most of them were written since.
///
/// An optimizer that the program passed to the engine writes in the step itself, or discards the record (LBFGS, edits).
///
/// Not detected: writes that bypass torch's version counters (torch::optim::SGD) into unsharded fp32 parameters on a
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

  /// Called when the gradients of a window are complete. Cost: that of a few parameters, for any model.
  void note();

  /// Whether most of the recorded parameters were written since; discards the record.
  bool happened();

  void forget() { marks_.clear(); }

 private:
  using Values = std::array<std::uint8_t, 64>;
  struct Mark {
    int parameter = 0;
    bool written = false;  ///< before it was recorded
    std::uint32_t version = 0;
    Values values = {};  ///< some bytes of parameters that are always resident
  };
  Mark mark_of(int parameter) const;
  bool is_written(int parameter) const;

  ModelState& state_;
  std::vector<Mark> marks_;
};

}  // namespace zeropage::engine
