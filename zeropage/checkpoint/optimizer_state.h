/// \file
/// The optimizer state of a parameter in a checkpoint, whether the engine's update or an optimizer object saved it. The
/// engine's own update saves "exp_avg/NAME" and counts updates in the manifest. Objects of torch.optim save
/// "torch.exp_avg/NAME" and counts of their own ("torch_scalar.step/NAME"). For Adam, AdamW, Adagrad and SGD both have
/// the same meaning, so each can read what the other has saved. Other states are refused by name.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "zeropage/checkpoint/load.h"

namespace zeropage::checkpoint {

/// The prefix in a checkpoint for the state of an optimizer object: "torch", "torch_scalar", "torch_number",
/// "torch_value".
enum class StateForm {
  kElements,  ///< an elementwise tensor
  kScalar,    ///< a tensor of one element, for the whole parameter
  kNumber,    ///< a number for the whole parameter
  kWhole      ///< everything that an optimizer keeps of a parameter that it gets whole; without a key
};

struct StateEntry {
  StateForm form = StateForm::kElements;
  std::string key;                       ///< its name in torch.optim
  const TensorRecord* tensor = nullptr;  ///< null: `updates` is the value
  std::optional<std::int64_t> updates = {};
};

class SavedOptimizerStates {
 public:
  /// `step` must outlive it. Cost: one pass over the names of its tensors.
  explicit SavedOptimizerStates(const Checkpoint& step);

  /// For an optimizer object of PyTorch or libtorch: the saved state of a parameter, by any of its names. State that
  /// the engine has saved is converted to the form of torch.optim's classes. Empty: there is none. `is_torchs`: the
  /// object is of such a class. Errors: CheckpointError when it is not and the engine has saved the state.
  std::vector<StateEntry> for_object(const std::string& parameter, bool is_torchs) const;

  /// For the engine's own update: the tensor of a state that it keeps ("exp_avg"), or null.
  const TensorRecord* for_engine(const ParameterRecord& parameter, const std::string& state) const;

  /// For the engine's own update: the number of updates of the parameter. `read`: reads a tensor of one element.
  std::int64_t updates(const ParameterRecord& parameter,
                       const std::function<std::int64_t(const TensorRecord&)>& read) const;

  /// For an engine's update that keeps `states`: the first saved state of an object that it does not have; nullopt:
  /// none.
  std::optional<std::string> unknown_to_engine(const ParameterRecord& parameter,
                                               const std::vector<std::string>& states) const;

  /// Whether the parameter may have no state because it has had no gradient: objects make the state at the first
  /// gradient.
  bool may_begin(const ParameterRecord& parameter) const { return parameter.updates == 0 && !engine_saved_; }

 private:
  const std::vector<StateEntry>& of_object(const ParameterRecord& parameter) const;

  const Checkpoint& step_;
  std::map<std::string_view, const ParameterRecord*> parameters_;   ///< by each of their names
  std::map<std::string_view, std::vector<StateEntry>> of_objects_;  ///< by the parameter's first name
  bool engine_saved_ = false;
};

/// "torch", ...
const char* form_name(StateForm form);

}  // namespace zeropage::checkpoint
