// Full and local values, and parameters that are added later, with Python's names.
#include <ATen/ATen.h>
#include <fmt/format.h>

#include "zeropage/base/error.h"
#include "zeropage/cpp/buffers.h"
#include "zeropage/cpp/engine_impl.h"
#include "zeropage/cpp/hyperparameters.h"
#include "zeropage/engine/data_types.h"
#include "zeropage/engine/parameter_values.h"

namespace zeropage {
namespace {

using engine::ValueName;

const ValueName kFp32{ValueName::Kind::kParameter};
const ValueName kGradient{ValueName::Kind::kGradient};
ValueName state_of(const std::string& state) { return {ValueName::Kind::kState, state}; }

/// A tensor with as many elements as this rank updates of the parameter, all with the value `value`.
at::Tensor elements(engine::Engine& core, const at::Tensor& parameter, double value) {
  return core.values().piece_of(parameter, at::full(parameter.sizes(), value));
}

}  // namespace

at::Tensor Engine::scale(const at::Tensor& loss) { return impl_->core->scale(loss); }

at::Tensor Engine::safe_get_full_fp32_param(const at::Tensor& parameter) {
  return impl_->core->values().full(parameter, kFp32);
}
at::Tensor Engine::safe_get_full_grad(const at::Tensor& parameter) {
  return impl_->core->values().full(parameter, kGradient);
}
at::Tensor Engine::safe_get_full_optimizer_state(const at::Tensor& parameter, const std::string& state) {
  auto& core = *impl_->core;
  if (!impl_->client) return core.values().full(parameter, state_of(state));
  if (impl_->client->sees_whole(parameter)) return impl_->client->full(parameter, state);
  const at::Tensor piece = impl_->client->local(parameter, state);
  // Ranks without elements of the parameter cannot know whether it has the state.
  const at::Tensor there = core.values().assemble(parameter, elements(core, parameter, piece.defined() ? 1.0 : 0.0));
  if (!there.all().item<bool>()) return {};
  return core.values().assemble(parameter, piece.defined() ? piece : elements(core, parameter, 0.0));
}

void Engine::safe_set_full_fp32_param(const at::Tensor& parameter, const at::Tensor& value) {
  impl_->core->values().set_full(parameter, kFp32, value);
}
void Engine::safe_set_full_grad(const at::Tensor& parameter, const at::Tensor& value) {
  impl_->core->values().set_full(parameter, kGradient, value);
}
void Engine::safe_set_full_optimizer_state(const at::Tensor& parameter, const at::Tensor& value,
                                           const std::string& state) {
  auto& values = impl_->core->values();
  if (!impl_->client) return values.set_full(parameter, state_of(state), value);
  if (impl_->client->sees_whole(parameter)) return impl_->client->set_full(parameter, state, value);
  impl_->client->set_local(parameter, state, values.piece_of(parameter, value));
}

at::Tensor Engine::safe_get_local_fp32_param(const at::Tensor& parameter) {
  return impl_->core->values().local(parameter, kFp32);
}
at::Tensor Engine::safe_get_local_grad(const at::Tensor& parameter) {
  return impl_->core->values().local(parameter, kGradient);
}
at::Tensor Engine::safe_get_local_optimizer_state(const at::Tensor& parameter, const std::string& state) {
  if (!impl_->client) return impl_->core->values().local(parameter, state_of(state));
  const at::Tensor own = impl_->client->local(parameter, state);
  return own.defined() ? own.to(at::kFloat).clone() : own;
}

void Engine::safe_set_local_fp32_param(const at::Tensor& parameter, const at::Tensor& value) {
  impl_->core->values().set_local(parameter, kFp32, value);
}
void Engine::safe_set_local_grad(const at::Tensor& parameter, const at::Tensor& value) {
  impl_->core->values().set_local(parameter, kGradient, value);
}
void Engine::safe_set_local_optimizer_state(const at::Tensor& parameter, const at::Tensor& value,
                                            const std::string& state) {
  if (!impl_->client) return impl_->core->values().set_local(parameter, state_of(state), value);
  impl_->client->set_local(parameter, state, value);
}

void Engine::add_parameters(const ParameterGroup& group) {
  if (group.parameters.empty()) {
    throw UsageError("add_parameters: the group has no parameters; give those of the new layer, layer->parameters()");
  }
  auto groups = impl_->core->groups();
  if (impl_->client) {
    impl_->client->add_group(group);
    groups = impl_->client->engine_groups();
  } else if (impl_->has_optimizer) {
    groups.push_back(cpp::hyperparameters({group}, impl_->config.optimizer).front());
  }
  const int index = impl_->has_optimizer ? static_cast<int>(groups.size()) - 1 : -1;
  const auto named = impl_->model.parameters();
  std::vector<engine::ParameterInput> inputs;
  for (std::size_t i = 0; i < group.parameters.size(); ++i) {
    const at::Tensor& parameter = group.parameters[i];
    const auto own = std::ranges::find_if(named, [&](const auto& pair) { return pair.second.is_same(parameter); });
    std::string name = own != named.end() ? own->first : fmt::format("group{}.{}", groups.size() - 1, i);
    if (parameter.device() != device()) parameter.set_data(parameter.to(device()));
    inputs.push_back({std::move(name), parameter, index});
  }
  auto* module = impl_->model.module();
  const auto declared = module != nullptr ? cpp::declared_in_fp32(*module) : std::vector<std::string>{};
  engine::settle_added_types(impl_->config, declared, inputs);
  if (impl_->client) impl_->client->note_whole(inputs);
  impl_->core->add_parameters(inputs, groups);
  for (const auto& input : inputs) impl_->model.add(input.name, input.tensor);
  if (impl_->client) impl_->client->extend(*impl_->core, inputs);
}

}  // namespace zeropage
