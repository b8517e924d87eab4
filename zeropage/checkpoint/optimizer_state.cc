#include "zeropage/checkpoint/optimizer_state.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <set>

#include "zeropage/base/error.h"
#include "zeropage/config/optimizers.h"

namespace zeropage::checkpoint {
namespace {

constexpr std::array<std::pair<StateForm, const char*>, 4> kForms = {{{StateForm::kElements, "torch"},
                                                                      {StateForm::kScalar, "torch_scalar"},
                                                                      {StateForm::kNumber, "torch_number"},
                                                                      {StateForm::kWhole, "torch_value"}}};
constexpr const char* kStep = "step";

/// The names of states ("exp_avg", ...) of all optimizers of the engine.
const std::set<std::string, std::less<>>& engine_states() {
  static const auto all = [] {
    std::set<std::string, std::less<>> names;
    for (const auto& entry : config::optimizer_entries()) {
      for (const char* name : entry.states) {
        if (name != nullptr) names.insert(name);
      }
    }
    return names;
  }();
  return all;
}

}  // namespace

const char* form_name(StateForm form) {
  return std::ranges::find(kForms, form, [](const auto& row) { return row.first; })->second;
}

SavedOptimizerStates::SavedOptimizerStates(const Checkpoint& step) : step_(step) {
  for (const auto& record : step.manifest().parameters) {
    parameters_[record.name] = &record;
    for (const auto& alias : record.aliases) parameters_.emplace(alias, &record);
  }
  for (const auto& tensor : step.manifest().tensors) {
    const std::string_view name = tensor.info.name;
    const auto slash = name.find('/');
    if (slash == std::string_view::npos) continue;
    const auto kind = name.substr(0, slash);
    const auto dot = std::min(kind.find('.'), kind.size());
    if (engine_states().contains(kind)) engine_saved_ = true;
    const auto form = std::ranges::find(kForms, kind.substr(0, dot), [](const auto& row) { return row.second; });
    if (form == kForms.end() || (dot == kind.size()) != (form->first == StateForm::kWhole)) continue;
    of_objects_[name.substr(slash + 1)].push_back(
        {form->first, std::string(kind.substr(std::min(dot + 1, kind.size()))), &tensor});
  }
}

const std::vector<StateEntry>& SavedOptimizerStates::of_object(const ParameterRecord& parameter) const {
  static const std::vector<StateEntry> none;
  const auto found = of_objects_.find(parameter.name);
  return found == of_objects_.end() ? none : found->second;
}

std::vector<StateEntry> SavedOptimizerStates::for_object(const std::string& parameter, bool is_torchs) const {
  const auto record = parameters_.find(parameter);
  if (record == parameters_.end()) return {};
  auto entries = of_object(*record->second);
  if (!entries.empty()) return entries;
  for (const auto& state : engine_states()) {
    const auto* tensor = step_.find(state + "/" + record->second->name);
    if (tensor != nullptr) entries.push_back({StateForm::kElements, state, tensor});
  }
  if (entries.empty()) return {};
  if (!is_torchs) {
    throw CheckpointError(fmt::format(
        "the checkpoint has the optimizer's state of '{}' ({}) as the engine's own update and torch.optim keep it, and "
        "this optimizer is of another class of the same name; load without optimizer states",
        parameter, entries.front().key));
  }
  const std::int64_t updates = record->second->updates;
  // SGD's first momentum is the gradient, so before the first update there is none. The other optimizers count their
  // steps.
  if (entries.front().key == "momentum_buffer") return updates == 0 ? std::vector<StateEntry>{} : entries;
  entries.push_back({StateForm::kScalar, kStep, nullptr, updates});
  return entries;
}

const TensorRecord* SavedOptimizerStates::for_engine(const ParameterRecord& parameter, const std::string& state) const {
  if (const auto* tensor = step_.find(state + "/" + parameter.name)) return tensor;
  for (const auto& entry : of_object(parameter)) {
    if (entry.form == StateForm::kElements && entry.key == state) return entry.tensor;
  }
  return nullptr;
}

std::int64_t SavedOptimizerStates::updates(const ParameterRecord& parameter,
                                           const std::function<std::int64_t(const TensorRecord&)>& read) const {
  const auto& entries = of_object(parameter);
  const auto count = std::ranges::find(entries, kStep, &StateEntry::key);
  if (count != entries.end()) return read(*count->tensor);
  // SGD keeps no count. If there is a momentum, at least one update was made.
  return entries.empty() ? parameter.updates : std::max<std::int64_t>(parameter.updates, 1);
}

std::optional<std::string> SavedOptimizerStates::unknown_to_engine(const ParameterRecord& parameter,
                                                                   const std::vector<std::string>& states) const {
  for (const auto& entry : of_object(parameter)) {
    if (entry.form == StateForm::kWhole) return "all that an optimizer keeps of the whole parameter";
    const bool known = entry.form == StateForm::kElements && std::ranges::find(states, entry.key) != states.end();
    if (!known && entry.key != kStep) return entry.key;
  }
  return std::nullopt;
}

}  // namespace zeropage::checkpoint
