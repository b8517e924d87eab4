// State of the program's optimizer in checkpoints, in the form of Python's shard_state.py: "torch.square_avg/NAME" is
// an elementwise tensor, "torch_scalar.step/NAME" a tensor and "torch_number.count/NAME" a number for the whole
// parameter.
#include <ATen/ATen.h>
#include <fmt/format.h>

#include <algorithm>

#include "zeropage/base/error.h"
#include "zeropage/checkpoint/optimizer_state.h"
#include "zeropage/cpp/client_optimizer.h"
#include "zeropage/cpp/muon.h"
#include "zeropage/cpp/whole_state.h"
#include "zeropage/engine/checkpoint.h"

namespace zeropage::cpp {
namespace {

using checkpoint::StateForm;

/// libtorch counts steps in an integer, and Python's torch in an fp32 tensor.
bool counts_steps(const std::string& key) { return key == "step"; }

at::Tensor number_as_tensor(const c10::IValue& value) {
  if (value.isInt()) return at::scalar_tensor(value.toInt(), at::kLong);
  if (value.isBool()) return at::scalar_tensor(value.toBool(), at::kBool);
  return at::scalar_tensor(value.toDouble(), at::kDouble);
}

c10::IValue value_of(StateForm form, const std::string& key, const at::Tensor& tensor, bool is_torchs) {
  if (form == StateForm::kElements) return tensor;
  if (is_torchs && counts_steps(key)) return tensor.item().toLong();
  if (form == StateForm::kScalar) return tensor.reshape({});
  if (tensor.scalar_type() == at::kBool) return tensor.item<bool>();
  return tensor.is_floating_point() ? c10::IValue(tensor.item<double>()) : c10::IValue(tensor.item<std::int64_t>());
}

}  // namespace

bool ClientOptimizer::is_saved() const {
  if (is_torchs_ || is_muon_ || needs_closure_) return !needs_closure_;
  torch::serialize::OutputArchive written;
  optimizer_->save(written);
  const auto keys = read_back(written).keys();
  return std::ranges::find(keys, "state") != keys.end() && std::ranges::find(keys, "param_groups") != keys.end();
}

bool ClientOptimizer::StandIn::has(const at::Tensor& value) const {
  if (whole) return value.sizes().vec() == whole->extents;
  return value.dim() > 0 && value.numel() == segment.numel;
}

at::Tensor ClientOptimizer::StandIn::flat(const at::Tensor& value) const {
  return whole ? whole->flat(value) : value.flatten();
}

at::Tensor ClientOptimizer::StandIn::shaped(const at::Tensor& flat) const { return whole ? whole->shaped(flat) : flat; }

/// With the values that are on a drive.
ArchiveItems ClientOptimizer::items_of_state(const torch::optim::OptimizerParamState& state) const {
  if (!is_muon_) return items_of(state);
  return items_of(static_cast<const Muon&>(*optimizer_).read(static_cast<const MuonState&>(state)));
}

const ClientOptimizer::StandIn* ClientOptimizer::stand_in_of(const at::Tensor& parameter) const {
  for (const auto& [index, stand_in] : stand_ins_) {
    if (inputs_[index].tensor.is_same(parameter)) return &stand_in;
  }
  return nullptr;
}

at::Tensor ClientOptimizer::local(const at::Tensor& parameter, const std::string& state) const {
  const StandIn* stand_in = stand_in_of(parameter);
  if (stand_in == nullptr) return {};
  const auto found = optimizer_->state().find(stand_in->tensor.unsafeGetTensorImpl());
  if (found == optimizer_->state().end()) return {};
  for (const auto& [key, value] : items_of_state(*found->second)) {
    if (key == state && value.isTensor() && stand_in->has(value.toTensor())) {
      return stand_in->flat(value.toTensor().detach());
    }
  }
  return {};
}

bool ClientOptimizer::sees_whole(const at::Tensor& parameter) const {
  return std::ranges::any_of(inputs_,
                             [&](const auto& input) { return input.whole && input.tensor.is_same(parameter); });
}

at::Tensor ClientOptimizer::full(const at::Tensor& parameter, const std::string& state) {
  const auto input = std::ranges::find_if(inputs_, [&](const auto& each) { return each.tensor.is_same(parameter); });
  const int index = static_cast<int>(input - inputs_.begin());
  const auto& shape = whole_parameters_->shape(index);
  const at::Tensor own = local(parameter, state);
  const auto mine = own.defined() ? std::optional(shape.shaped(own)) : std::nullopt;
  return whole_parameters_->from_owner(index, mine).value_or(at::Tensor());
}

void ClientOptimizer::set_full(const at::Tensor& parameter, const std::string& state, const at::Tensor& value) {
  const StandIn* stand_in = stand_in_of(parameter);
  if (stand_in != nullptr) set_local(parameter, state, stand_in->flat(value));
}

std::array<std::int64_t, 2> ClientOptimizer::bytes_on(c10::Device device) const {
  std::array<std::int64_t, 2> bytes = {0, 0};
  for (const auto& [parameter, state] : optimizer_->state()) {
    const auto items =
        is_muon_ ? items_of(static_cast<const Muon&>(*optimizer_).in_memory(static_cast<const MuonState&>(*state)))
                 : items_of(*state);
    for (const auto& [key, value] : items) {
      if (!value.isTensor()) continue;
      const at::Tensor tensor = value.toTensor();
      bytes[tensor.device().type() == device.type() ? 0 : 1] += static_cast<std::int64_t>(tensor.nbytes());
    }
  }
  return bytes;
}

void ClientOptimizer::set_local(const at::Tensor& parameter, const std::string& state, const at::Tensor& value) {
  std::map<int, ArchiveItems> states;
  bool was_set = false;
  for (const auto& [index, stand_in] : stand_ins_) {
    const auto found = optimizer_->state().find(stand_in.tensor.unsafeGetTensorImpl());
    if (found == optimizer_->state().end()) continue;
    states[index] = items_of_state(*found->second);
    if (!inputs_[index].tensor.is_same(parameter)) continue;
    for (auto& [key, item] : states[index]) {
      if (key != state || !item.isTensor() || item.toTensor().numel() != value.numel()) continue;
      item = stand_in.shaped(value.detach().to(at::kFloat).flatten()).clone();
      was_set = true;
    }
  }
  if (!was_set && value.numel() > 0) {
    throw UsageError(
        fmt::format("{} has no state '{}' of {} elements of this parameter", class_name_, state, value.numel()));
  }
  load(states, options());
}

std::vector<engine::CallerState> ClientOptimizer::states() const {
  std::vector<engine::CallerState> states;
  if (!is_saved()) return states;
  for (const auto& [parameter, stand_in] : stand_ins_) {
    const auto found = optimizer_->state().find(stand_in.tensor.unsafeGetTensorImpl());
    if (found == optimizer_->state().end() || stand_in.whole) continue;
    for (const auto& [key, value] : items_of_state(*found->second)) {
      const auto add = [&, offset = stand_in.segment.offset, index = parameter](StateForm form, at::Tensor values) {
        states.push_back({fmt::format("{}.{}", checkpoint::form_name(form), key), index, offset, std::move(values)});
      };
      const bool is_number = value.isInt() || value.isDouble() || value.isBool();
      if (value.isNone()) continue;
      if (value.isTensor() && value.toTensor().dim() > 0 && value.toTensor().numel() == stand_in.segment.numel) {
        add(StateForm::kElements, value.toTensor().detach().flatten());
      } else if (value.isTensor() && value.toTensor().numel() == 1) {
        add(StateForm::kScalar, value.toTensor().detach().reshape({}));
      } else if (is_number && (is_torchs_ || is_muon_) && counts_steps(key)) {
        add(StateForm::kScalar, number_as_tensor(value).to(at::kFloat));
      } else if (is_number) {
        add(StateForm::kNumber, number_as_tensor(value));
      } else {
        throw CheckpointError(
            fmt::format("state '{}' that {} keeps of parameter '{}' is neither elementwise ({} here) nor a number: "
                        "checkpoints cannot hold a {}",
                        key, class_name_, inputs_[parameter].name, stand_in.segment.numel, value.tagKind()));
      }
    }
  }
  return states;
}

std::map<std::string, at::Tensor> ClientOptimizer::whole_states(int rank) const {
  std::map<std::string, at::Tensor> saved;
  for (const auto& [parameter, stand_in] : stand_ins_) {
    const auto found = optimizer_->state().find(stand_in.tensor.unsafeGetTensorImpl());
    const bool is_mine = stand_in.whole && whole_parameters_->owner(parameter) == rank;
    if (!is_mine || found == optimizer_->state().end()) continue;
    saved.merge(encode_whole_state(items_of_state(*found->second), inputs_[parameter].name));
  }
  return saved;
}

std::map<int, ArchiveItems> ClientOptimizer::read(checkpoint::Checkpoint& step) const {
  const checkpoint::SavedOptimizerStates saved(step);
  std::map<int, ArchiveItems> states;
  for (const auto& [parameter, stand_in] : stand_ins_) {
    const auto& segment = stand_in.segment;
    const auto& name = inputs_[parameter].name;
    for (const auto& entry : saved.for_object(name, is_torchs_)) {
      if (entry.form == StateForm::kWhole && stand_in.whole) {
        states[parameter] = decode_whole_state(step, name);
        continue;
      }
      if (entry.form == StateForm::kWhole) {
        throw CheckpointError(fmt::format(
            "the optimizer's state of '{}' was saved for the whole parameter, and {} gets parts of it: write "
            "\"zeropage\": {{\"optimizer_sees\": \"parameters\"}} in the configuration, or load with "
            "load_optimizer_states = false",
            name, class_name_));
      }
      const bool by_element = entry.form == StateForm::kElements;
      const auto tensor = entry.tensor == nullptr
                              ? at::scalar_tensor(*entry.updates, at::kLong)
                              : engine::read_range(step, entry.tensor->info.name, by_element ? segment.offset : 0,
                                                   by_element ? segment.numel : 1);
      const auto value = by_element ? stand_in.shaped(tensor) : tensor;
      states[parameter].emplace_back(entry.key, value_of(entry.form, entry.key, value, is_torchs_ || is_muon_));
    }
  }
  return states;
}

/// Writes an archive like torch's own optimizers, so that their `load` makes states of their own classes.
void ClientOptimizer::load(const std::map<int, ArchiveItems>& states, const std::vector<ArchiveItems>& options) {
  torch::serialize::OutputArchive whole;
  torch::serialize::OutputArchive state_archive(whole.compilation_unit());
  torch::serialize::OutputArchive groups_archive(whole.compilation_unit());
  const auto key_of = [&](int parameter) { return std::to_string(parameter + 1); };
  for (const auto& [parameter, items] : states) {
    auto archive = archive_of(items, whole);
    state_archive.write(key_of(parameter), archive);
  }
  const auto groups = optimizer_->param_groups().size();
  groups_archive.write("param_groups/size", at::tensor(static_cast<std::int64_t>(groups)));
  for (std::size_t i = 0; i < groups; ++i) {
    torch::serialize::OutputArchive archive(whole.compilation_unit());
    std::int64_t count = 0;
    for (const auto& [parameter, stand_in] : stand_ins_) {
      if (stand_in.group != static_cast<int>(i)) continue;
      archive.write("params/" + std::to_string(count++), c10::IValue(key_of(parameter)));
    }
    archive.write("params/size", at::tensor(count));
    auto options_archive = archive_of(options[i], whole);
    archive.write("options", options_archive);
    groups_archive.write("param_groups/" + std::to_string(i), archive);
  }
  whole.write("pytorch_version", c10::IValue("1.5.0"));
  whole.write("state", state_archive);
  whole.write("param_groups", groups_archive);
  auto archive = read_back(whole);
  optimizer_->state().clear();
  if (stand_ins_.empty()) optimizer_->param_groups()[0].params().clear();
  optimizer_->load(archive);
  if (is_muon_) static_cast<Muon&>(*optimizer_).move_to_drive();
  arm();
  for (const auto& [parameter, stand_in] : stand_ins_) {
    if (!states.contains(parameter)) begin_state(stand_in);
  }
}

}  // namespace zeropage::cpp
