#include "zeropage/cpp/muon.h"

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <torch/nn/modules/conv.h>
#include <torch/optim/serialize.h>

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <tuple>

#include "zeropage/base/error.h"
#include "zeropage/planner/model.h"

namespace zeropage::cpp {
namespace {

using nlohmann::json;
using torch::optim::OptimizerParamGroup;
using torch::serialize::InputArchive;
using torch::serialize::OutputArchive;

/// Calls visit(name, member) for every hyperparameter of the half, under its name in Python's groups.
template <class Options, class Visit>
void each_option(Options& options, const Visit& visit) {
  visit("use_muon", options.use_muon);
  if (options.use_muon) {
    auto& muon = options.muon;
    visit("lr", muon.lr);
    visit("weight_decay", muon.weight_decay);
    visit("momentum", muon.momentum);
    visit("nesterov", muon.nesterov);
    visit("ns_method", muon.ns_method);
    visit("ns_steps", muon.ns_steps);
    visit("ns_dtype", muon.ns_dtype);
    visit("adjust_lr_fn", muon.adjust_lr_fn);
    visit("matrices", muon.matrices);
  } else {
    auto& adam = options.adam;
    visit("lr", adam.lr);
    visit("weight_decay", adam.weight_decay);
    visit("eps", adam.eps);
    visit("adam_w_mode", adam.adam_w_mode);
  }
}

void write(OutputArchive& archive, const char* name, const at::Tensor& tensor) {
  if (tensor.defined()) archive.write(name, c10::IValue(tensor));
}

void read(InputArchive& archive, const char* name, at::Tensor& tensor) {
  c10::IValue value;
  if (archive.try_read(name, value)) tensor = value.toTensor();
}

const json& section_of(const json& config) { return config.at("optimizer").at("params"); }

double rate_of(const json& params, const char* own, double otherwise) {
  if (!params.at(own).is_null()) return params.at(own).get<double>();
  return params.at("lr").is_null() ? otherwise : params.at("lr").get<double>();
}

/// The hyperparameters of the half from the configuration.
MuonGroupOptions options_of(const json& params, bool use_muon, std::int64_t matrices) {
  MuonGroupOptions options;
  options.use_muon = use_muon;
  options.muon.matrices = matrices;
  each_option(options, [&](const std::string& name, auto& value) {
    const auto found = params.find(name);
    if (found != params.end() && !found->is_null()) value = found->get<std::decay_t<decltype(value)>>();
  });
  options.set_lr(use_muon ? rate_of(params, "muon_lr", options.muon.lr) : rate_of(params, "adam_lr", options.adam.lr));
  options.adam.beta1 = params.at("betas").at(0).get<double>();
  options.adam.beta2 = params.at("betas").at(1).get<double>();
  return options;
}

/// Applies the group's own hyperparameters, which have priority.
void apply(const ParameterGroup& group, std::size_t index, MuonGroupOptions& options) {
  ParameterGroup known;
  known.lr = group.lr;
  known.weight_decay = group.weight_decay;
  known.betas = group.betas;
  known.eps = group.eps;
  known.momentum = group.momentum;
  known.nesterov = group.nesterov;
  known.use_muon = group.use_muon;
  known.muon_heads = group.muon_heads;
  if (!known.has_same_options(group)) {
    throw ConfigError(fmt::format(
        "parameter group {} has a hyperparameter that Muon does not have; it has lr, weight_decay, momentum, nesterov, "
        "use_muon and muon_heads, and for the parameters that AdamW updates betas and eps",
        index));
  }
  if (group.lr) options.set_lr(*group.lr);
  if (group.weight_decay) options.muon.weight_decay = options.adam.weight_decay = *group.weight_decay;
  if (group.betas) std::tie(options.adam.beta1, options.adam.beta2) = *group.betas;
  if (group.eps) options.adam.eps = *group.eps;
  if (group.momentum) options.muon.momentum = *group.momentum;
  if (group.nesterov) options.muon.nesterov = *group.nesterov;
}

template <class... Kinds>
bool is_module_of(const torch::nn::Module& module) {
  return ((dynamic_cast<const Kinds*>(&module) != nullptr) || ...);
}

bool is_convolution(const torch::nn::Module& module) {
  using namespace torch::nn;
  return is_module_of<Conv1dImpl, Conv2dImpl, Conv3dImpl, ConvTranspose1dImpl, ConvTranspose2dImpl,
                      ConvTranspose3dImpl>(module);
}

/// The group's heads, as the matrices of one of its parameters. Errors: ConfigError when they do not fit.
std::int64_t heads_of(const std::string& name, const at::Tensor& parameter, std::int64_t heads, bool per_head) {
  if (!per_head) {
    throw ConfigError(
        "a parameter group has muon_heads, which count with optimizer.params.per_head_muon true; set the "
        "key, or leave muon_heads out");
  }
  if (heads < 1 || parameter.dim() != 2 || parameter.size(0) % heads != 0) {
    throw ConfigError(
        fmt::format("optimizer.params.per_head_muon: parameter '{}' [{}] is not {} heads of as many rows each", name,
                    fmt::join(parameter.sizes(), ", "), heads));
  }
  return heads;
}

std::set<const void*> convolution_kernels(const torch::nn::Module& model) {
  std::set<const void*> kernels;
  const auto add = [&](const torch::nn::Module& module) {
    if (!is_convolution(module)) return;
    for (const auto& parameter : module.parameters(/*recurse=*/false)) kernels.insert(parameter.unsafeGetTensorImpl());
  };
  add(model);
  for (const auto& module : model.modules(/*include_self=*/false)) add(*module);
  return kernels;
}

void update_by_halves(const at::Tensor& parameter, const at::Tensor& gradient, MuonState& own,
                      const MuonGroupOptions& options) {
  if (options.use_muon) {
    if (!own.momentum_buffer.defined()) own.momentum_buffer = at::zeros_like(gradient);
    session::muon_step(parameter, gradient, own.momentum_buffer, options.muon);
    return;
  }
  if (!own.exp_avg.defined()) own.exp_avg = at::zeros_like(gradient);
  if (!own.exp_avg_sq.defined()) own.exp_avg_sq = at::zeros_like(gradient);
  session::adam_step(parameter, gradient, own.exp_avg, own.exp_avg_sq, static_cast<double>(++own.step), options.adam);
}

}  // namespace

void MuonGroupOptions::serialize(OutputArchive& archive) const {
  each_option(*this, [&](const char* name, const auto& value) { archive.write(name, c10::IValue(value)); });
  if (!use_muon) archive.write("betas", c10::IValue(std::tuple(adam.beta1, adam.beta2)));
}

void MuonGroupOptions::serialize(InputArchive& archive) {
  c10::IValue stored;
  if (archive.try_read("use_muon", stored)) use_muon = stored.toBool();
  each_option(*this, [&](const char* name, auto& value) {
    if (archive.try_read(name, stored)) value = stored.to<std::decay_t<decltype(value)>>();
  });
  if (!use_muon && archive.try_read("betas", stored)) {
    std::tie(adam.beta1, adam.beta2) = stored.to<std::tuple<double, double>>();
  }
}

void MuonState::serialize(OutputArchive& archive) const {
  write(archive, "momentum_buffer", momentum_buffer);
  if (!exp_avg.defined()) return;
  archive.write("step", c10::IValue(step));
  write(archive, "exp_avg", exp_avg);
  write(archive, "exp_avg_sq", exp_avg_sq);
}

void MuonState::serialize(InputArchive& archive) {
  c10::IValue stored;
  if (archive.try_read("step", stored)) step = stored.toInt();
  read(archive, "momentum_buffer", momentum_buffer);
  read(archive, "exp_avg", exp_avg);
  read(archive, "exp_avg_sq", exp_avg_sq);
}

Muon::Muon(const std::vector<OptimizerParamGroup>& groups) : Optimizer(groups, std::make_unique<MuonGroupOptions>()) {
  // From version 2.12 on torch gives groups the default options, unless it knows the class of the options.
  for (std::size_t i = 0; i < groups.size(); ++i) param_groups()[i].set_options(groups[i].options().clone());
}

at::Tensor Muon::step(LossClosure closure) {
  if (closure) throw UsageError("Muon::step was given a function for the loss; it does not evaluate the loss");
  c10::AutoGradMode no_grad(false);
  for (auto& group : param_groups()) {
    const auto& options = static_cast<const MuonGroupOptions&>(group.options());
    for (auto& parameter : group.params()) {
      const at::Tensor gradient = parameter.grad();
      if (!gradient.defined()) continue;
      auto& kept = state()[parameter.unsafeGetTensorImpl()];
      if (!kept) kept = std::make_unique<MuonState>();
      auto& own = static_cast<MuonState&>(*kept);
      if (drive_) {
        for (const auto* tensor : own.tensors()) drive_->get(*tensor);
      }
      update_by_halves(parameter, gradient, own, options);
      move_to_drive(own);
    }
  }
  return {};
}

void Muon::keep_on(std::shared_ptr<session::TensorsOnDrive> drive, bool momenta_stay) {
  drive_ = std::move(drive);
  momenta_stay_ = momenta_stay;
}

void Muon::move_to_drive() {
  for (const auto& [parameter, kept] : state()) move_to_drive(static_cast<const MuonState&>(*kept));
}

void Muon::move_to_drive(const MuonState& state) const {
  if (!drive_) return;
  const auto put = [&](const at::Tensor& tensor, const char* name) {
    if (tensor.defined()) drive_->put(tensor, fmt::format("Muon's state '{}'", name));
  };
  if (!momenta_stay_) put(state.momentum_buffer, "momentum_buffer");
  put(state.exp_avg, "exp_avg");
  put(state.exp_avg_sq, "exp_avg_sq");
}

MuonState Muon::read(const MuonState& state) const {
  MuonState copy = state;
  for (auto* tensor : copy.tensors()) {
    if (drive_ && tensor->defined()) *tensor = drive_->read(*tensor);
  }
  return copy;
}

MuonState Muon::in_memory(const MuonState& state) const {
  MuonState copy = state;
  for (auto* tensor : copy.tensors()) {
    if (drive_ && drive_->has(*tensor)) *tensor = at::Tensor();
  }
  return copy;
}

void Muon::save(OutputArchive& archive) const { torch::optim::serialize<MuonState, MuonGroupOptions>(archive, *this); }

void Muon::load(InputArchive& archive) { torch::optim::serialize<MuonState, MuonGroupOptions>(archive, *this); }

bool is_muon(const config::Config& config) {
  if (config.optimizer.kind != config::OptimizerKind::kClient) return false;
  const auto effective = json::parse(config.effective_json);
  return effective.at("optimizer").is_object() && effective.at("optimizer").at("type") == "Muon";
}

std::shared_ptr<Muon> make_muon(const config::Config& config, torch::nn::Module& model,
                                const std::vector<ParameterGroup>& groups) {
  const auto effective = json::parse(config.effective_json);
  const json& params = section_of(effective);
  const bool per_head = params.at("per_head_muon").get<bool>();
  if (per_head && std::ranges::none_of(groups, [](const auto& group) { return group.muon_heads.has_value(); })) {
    throw ConfigError(
        "optimizer.params.per_head_muon is true, and no parameter group says how many heads its parameters have: "
        "expected muon_heads in the group of each kind of projection");
  }
  std::map<const void*, std::string> names;
  for (const auto& parameter : model.named_parameters()) {
    names.emplace(parameter.value().unsafeGetTensorImpl(), parameter.key());
  }
  const auto kernels = convolution_kernels(model);
  std::vector<ParameterGroup> given = groups;
  if (given.empty()) given.emplace_back().parameters = model.parameters();
  // By (index of the group, AdamW's half, number of matrices), in Python's order.
  std::map<std::tuple<std::size_t, bool, std::int64_t>, std::vector<at::Tensor>> halves;
  for (std::size_t i = 0; i < given.size(); ++i) {
    for (const auto& parameter : given[i].parameters) {
      const std::string& name = names[parameter.unsafeGetTensorImpl()];
      const bool use_muon = given[i].use_muon.value_or(planner::takes_muon(name, parameter.dim()));
      std::int64_t matrices = use_muon && kernels.contains(parameter.unsafeGetTensorImpl()) ? 1 : 0;
      if (use_muon && given[i].muon_heads) matrices = heads_of(name, parameter, *given[i].muon_heads, per_head);
      halves[{i, !use_muon, matrices}].push_back(parameter);
    }
  }
  std::vector<OptimizerParamGroup> split;
  for (const auto& [key, parameters] : halves) {
    const auto& [index, not_muon, matrices] = key;
    auto options = std::make_unique<MuonGroupOptions>(options_of(params, !not_muon, matrices));
    apply(given[index], index, *options);
    split.emplace_back(parameters, std::move(options));
  }
  return std::make_shared<Muon>(split);
}

}  // namespace zeropage::cpp
