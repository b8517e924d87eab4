/// \file
/// What a checkpoint has of the optimizer's state of a parameter, whoever saved it. The engine's own update saves
/// "exp_avg/NAME" and counts updates in the manifest. Objects of torch.optim save "torch.exp_avg/NAME" and counts of
/// their own ("torch_scalar.step/NAME"). For Adam, AdamW, Adagrad and SGD both mean the same, so that each side reads
/// what the other has saved. Anything else is refused by name.
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

/// How a checkpoint calls what an object keeps, before the key: "torch", "torch_scalar", "torch_number", "torch_value".
enum class StateForm {
  kElements,  ///< a tensor by the element
  kScalar,    ///< a tensor of one element, for the whole parameter
  kNumber,    ///< a number for the whole parameter
  kWhole      ///< all that an optimizer keeps of a parameter which it gets whole; it has no key
};

struct StateEntry {
  StateForm form = StateForm::kElements;
  std::string key;                       ///< as torch.optim calls it
  const TensorRecord* tensor = nullptr;  ///< null: `updates` is the value
  std::optional<std::int64_t> updates = {};
};

class SavedOptimizerStates {
 public:
  /// `step` must outlive it. Cost: one pass over the names of its tensors.
  explicit SavedOptimizerStates(const Checkpoint& step);

  /// For an object that PyTorch or libtorch runs: what there is of a parameter, by any of its names. What the engine
  /// has saved comes as torch.optim's classes keep it. Empty: nothing.
  /// `is_torchs`: the object is of such a class. Errors: CheckpointError where it is not, and the engine has saved.
  std::vector<StateEntry> for_object(const std::string& parameter, bool is_torchs) const;

  /// For the engine's own update: the tensor of a state that it keeps ("exp_avg"), or null.
  const TensorRecord* for_engine(const ParameterRecord& parameter, const std::string& state) const;

  /// The same: the updates that the parameter has seen. `read`: the one element of a tensor.
  std::int64_t updates(const ParameterRecord& parameter,
                       const std::function<std::int64_t(const TensorRecord&)>& read) const;

  /// The same: the first state of an object that the engine does not keep, which keeps `states`; nullopt: none.
  std::optional<std::string> unknown_to_engine(const ParameterRecord& parameter,
                                               const std::vector<std::string>& states) const;

  /// Whether the parameter may have no state because it has had no gradient: objects make theirs at the first one.
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
