#include "zeropage/cpp/client_optimizer.h"

#include <ATen/ATen.h>
#include <cxxabi.h>
#include <fmt/format.h>
#include <torch/optim/adagrad.h>
#include <torch/optim/adam.h>
#include <torch/optim/adamw.h>
#include <torch/optim/lbfgs.h>
#include <torch/optim/rmsprop.h>
#include <torch/optim/sgd.h>

#include <algorithm>
#include <cstdlib>
#include <nlohmann/json.hpp>
#include <typeinfo>
#include <utility>

#include "zeropage/base/error.h"
#include "zeropage/base/letter_case.h"
#include "zeropage/cpp/muon.h"

namespace zeropage::cpp {
namespace {

using torch::optim::Optimizer;

std::string class_of(const Optimizer& optimizer) {
  int status = 0;
  const std::unique_ptr<char, void (*)(void*)> readable(
      abi::__cxa_demangle(typeid(optimizer).name(), nullptr, nullptr, &status), &std::free);
  return status == 0 ? readable.get() : typeid(optimizer).name();
}

std::string short_name(const std::string& class_name) {
  const auto colon = class_name.rfind(':');
  return lower_case(class_name.substr(colon == std::string::npos ? 0 : colon + 1));
}

template <class... Kinds>
bool is_one_of(const Optimizer& optimizer) {
  return ((typeid(optimizer) == typeid(Kinds)) || ...);
}

bool is_elementwise(const Optimizer& optimizer) {
  using namespace torch::optim;
  return is_one_of<SGD, Adam, AdamW, Adagrad, RMSprop>(optimizer);
}

void check_lbfgs(const config::Config& config) {
  const bool whole = config.zero.stage == 0 && config.precision == config::Precision::kFp32;
  if (whole && config.batch.accumulation_steps == 1 && config.gradients.clipping == 0.0) return;
  throw ConfigError(fmt::format(
      "LBFGS needs whole fp32 parameters and evaluates the loss many times a step: it runs at stage 0, without "
      "bf16, fp16, gradient "
      "clipping and accumulation; the configuration has stage {}, {} accumulation steps, gradient_clipping {}{}",
      config.zero.stage, config.batch.accumulation_steps, config.gradients.clipping,
      config.precision == config::Precision::kFp32 ? "" : ", 16-bit parameters"));
}

/// The value of "zeropage.optimizer_sees"; empty: not given.
std::string sees(const config::Config& config) {
  const auto value = nlohmann::json::parse(config.effective_json).at("zeropage").at("optimizer_sees");
  return value.is_string() ? value.get<std::string>() : "";
}

/// Storage that raises `message` when anything uses it.
at::Tensor tensor_without_memory(const char* message) {
  at::Tensor tensor = at::zeros({1});
  tensor.storage().unsafeGetStorageImpl()->release_data_and_set_meta_custom_data_ptr_error_msg_(message);
  return tensor;
}

constexpr const char* kNoMemory =
    "optimizer.step() was called on an optimizer that a zeropage engine runs, or a tensor of its groups was used: "
    "engine.step() runs the optimizer and clears gradients, so leave optimizer.step() and optimizer.zero_grad(false) "
    "out, and read parameters and gradients from "
    "module->parameters()";

}  // namespace

ClientOptimizer::ClientOptimizer(std::shared_ptr<Optimizer> optimizer, const config::Config& config, int world_size)
    : optimizer_(std::move(optimizer)), class_name_(class_of(*optimizer_)), name_(short_name(class_name_)) {
  needs_closure_ = dynamic_cast<const torch::optim::LBFGS*>(optimizer_.get()) != nullptr;
  is_torchs_ = is_elementwise(*optimizer_);
  is_muon_ = is_one_of<Muon>(*optimizer_);
  if (needs_closure_) check_lbfgs(config);
  const std::string declared = is_torchs_ || is_muon_ || needs_closure_ ? "" : sees(config);
  sees_whole_ = declared == "parameters" || declared == "model";
  if (declared == "model" && config.zero.stage > 0 && world_size > 1) {
    throw ConfigError(
        fmt::format("zeropage.optimizer_sees is \"model\": the {} in Options::optimizer sums over all parameters, and "
                    "at stage {} a "
                    "rank has some of them: use stage 0, or another optimizer",
                    class_name_, config.zero.stage));
  }
  const bool known = is_torchs_ || is_muon_ || needs_closure_ || !declared.empty();
  if (!known && !config.allow_untested_optimizer) {
    throw ConfigError(fmt::format(
        "Options::optimizer is a {}; it is not known on which data its step depends: write \"zeropage\": "
        "{{\"optimizer_sees\": \"elements\"}} in the configuration if it treats every element alike, or \"parameters\" "
        "if it needs norms, shapes or all of a parameter",
        class_name_));
  }
  const bool fresh_adagrad =
      is_one_of<torch::optim::Adagrad>(*optimizer_) && std::ranges::all_of(optimizer_->state(), [](const auto& item) {
        return static_cast<const torch::optim::AdagradParamState&>(*item.second).step() == 0;
      });
  if (!optimizer_->state().empty() && !fresh_adagrad) {
    throw ConfigError(
        fmt::format("the {} in Options::optimizer has taken steps already, and its state would be lost: pass one that "
                    "has taken none, and resume from a checkpoint with engine.load_checkpoint",
                    class_name_));
  }
  for (auto& group : optimizer_->param_groups()) whole_.push_back(group.params());
}

ClientOptimizer::~ClientOptimizer() {
  for (std::size_t i = 0; i < whole_.size(); ++i) optimizer_->param_groups()[i].params() = whole_[i];
}

std::vector<ParameterGroup> ClientOptimizer::groups() const {
  std::vector<ParameterGroup> groups;
  for (const auto& parameters : whole_) groups.emplace_back().parameters = parameters;
  return groups;
}

std::vector<config::OptimizerParams> ClientOptimizer::engine_groups() const {
  std::vector<config::OptimizerParams> groups;
  for (const auto& group : optimizer_->param_groups()) {
    auto& params = groups.emplace_back();
    try {
      params.lr = group.options().get_lr();
    } catch (const c10::Error&) {
      params.lr = 0.0;  // options of a program's class may not have one
    }
  }
  return groups;
}

void ClientOptimizer::set_rates(const std::vector<config::OptimizerParams>& groups) {
  for (std::size_t i = 0; i < groups.size(); ++i) {
    try {
      optimizer_->param_groups()[i].options().set_lr(groups[i].lr);
    } catch (const c10::Error&) {
      throw UsageError(fmt::format("the options of {} have no learning rate to set: override get_lr and set_lr in them",
                                   class_name_));
    }
  }
}

std::vector<std::pair<double, double>> ClientOptimizer::momenta() const {
  std::vector<std::pair<double, double>> out;
  for (const auto& items : options()) {
    auto& [first, second] = out.emplace_back(0.0, 0.0);
    for (const auto& [key, value] : items) {
      if (key == "momentum" && value.isDouble()) first = value.toDouble();
      if (key != "betas" || !value.isTuple()) continue;
      first = value.toTupleRef().elements()[0].toDouble();
      second = value.toTupleRef().elements()[1].toDouble();
    }
  }
  return out;
}

std::vector<ArchiveItems> ClientOptimizer::options() const {
  std::vector<ArchiveItems> all;
  for (const auto& group : optimizer_->param_groups()) {
    auto& items = all.emplace_back();
    try {
      items = items_of(group.options());
    } catch (const c10::Error&) {
      items.clear();  // a class that does not serialize its options
    }
    if (is_one_of<torch::optim::Adam, torch::optim::AdamW>(*optimizer_)) {
      items.emplace_back(kDecoupled, is_one_of<torch::optim::AdamW>(*optimizer_));
    }
  }
  return all;
}

std::string ClientOptimizer::facts() const {
  std::string facts = fmt::format("optimizer: {}\n", class_name_);
  const auto all = options();
  for (std::size_t i = 0; i < all.size(); ++i) {
    facts += fmt::format("parameter group {}:", i);
    for (const auto& [key, value] : all[i]) {
      std::ostringstream text;
      text << value;
      facts += fmt::format(" {}={}", key, text.str());
    }
    facts += "\n";
  }
  return facts;
}

bool ClientOptimizer::takes_whole(int group) const {
  if (!is_muon_) return sees_whole_;
  return static_cast<const MuonGroupOptions&>(optimizer_->param_groups()[group].options()).use_muon;
}

void ClientOptimizer::note_whole(std::vector<engine::ParameterInput>& inputs) const {
  if (needs_closure_) return;
  for (auto& input : inputs) input.whole = input.group >= 0 && input.tensor.numel() > 0 && takes_whole(input.group);
}

void ClientOptimizer::attach(const engine::Engine& core, const std::vector<engine::ParameterInput>& inputs,
                             const config::Config& config, std::shared_ptr<comm::Communicator> communicator,
                             c10::Device device) {
  inputs_ = inputs;
  if (needs_closure_) return;
  if (is_muon_) {
    static_cast<Muon&>(*optimizer_)
        .keep_on(session::make_tensors_on_drive(config, communicator->job().rank(), core.ledger()),
                 session::keeps_momenta_in_memory(config));
  }
  no_memory_ = tensor_without_memory(kNoMemory);
  optimizer_->state().clear();
  whole_parameters_.emplace(std::move(communicator), device);
  learn(core);
}

/// Finds the elements of new parameters that this rank updates.
void ClientOptimizer::learn(const engine::Engine& core) {
  std::map<int, session::WholeShape> shapes;
  for (std::size_t i = 0; i < inputs_.size(); ++i) {
    if (inputs_[i].whole) shapes.emplace(static_cast<int>(i), session::WholeShape::of(inputs_[i].tensor));
  }
  std::map<int, session::ParameterPart> parts;
  for (const auto& segment : core.owned_segments()) {
    if (shapes.contains(segment.parameter)) {
      parts[segment.parameter] = {segment.offset, segment.numel};
    } else {
      stand_ins_.try_emplace(segment.parameter, at::Tensor(), segment, inputs_[segment.parameter].group);
    }
  }
  if (!shapes.empty()) whole_parameters_->add(shapes, parts);
  for (const int parameter : whole_parameters_->seen()) {
    const auto& shape = whole_parameters_->shape(parameter);
    stand_ins_.try_emplace(parameter, at::Tensor(), engine::OwnedSegment{parameter, 0, shape.numel()},
                           inputs_[parameter].group, shape);
  }
  place_stand_ins();
}

void ClientOptimizer::add_group(const ParameterGroup& group) {
  ParameterGroup known;
  known.parameters = group.parameters;
  known.lr = group.lr;
  if (needs_closure_ || is_muon_ || !known.has_same_options(group)) {
    throw ConfigError(fmt::format("add_parameters: {}",
                                  needs_closure_ ? "LBFGS has one group; make another engine"
                                  : is_muon_     ? "Muon gets its parameters from initialize; make another engine"
                                             : "a group for an optimizer object can only have the hyperparameter lr"));
  }
  optimizer_->add_param_group(torch::optim::OptimizerParamGroup(group.parameters));
  whole_.push_back(group.parameters);
  if (group.lr) optimizer_->param_groups().back().options().set_lr(*group.lr);
}

void ClientOptimizer::extend(const engine::Engine& core, const std::vector<engine::ParameterInput>& added) {
  inputs_.insert(inputs_.end(), added.begin(), added.end());
  learn(core);
}

/// Makes missing stand-ins, and puts all stand-ins into the groups.
void ClientOptimizer::place_stand_ins() {
  for (auto& group : optimizer_->param_groups()) group.params().clear();
  for (auto& [parameter, stand_in] : stand_ins_) {
    if (!stand_in.tensor.defined()) {
      stand_in.tensor = no_memory_.detach().set_requires_grad(true);
      begin_state(stand_in);
    }
    optimizer_->param_groups()[stand_in.group].params().push_back(stand_in.tensor);
  }
  arm();
}

/// Makes the state that the constructor of Adagrad makes for its parameters.
void ClientOptimizer::begin_state(const StandIn& stand_in) {
  if (!is_one_of<torch::optim::Adagrad>(*optimizer_)) return;
  const auto& options =
      static_cast<const torch::optim::AdagradOptions&>(optimizer_->param_groups()[stand_in.group].options());
  auto state = std::make_unique<torch::optim::AdagradParamState>();
  state->step(0);
  state->sum(at::full({stand_in.segment.numel}, options.initial_accumulator_value()));
  optimizer_->state()[stand_in.tensor.unsafeGetTensorImpl()] = std::move(state);
}

void ClientOptimizer::arm() {
  // A rank that updates nothing must raise the error, too.
  if (stand_ins_.empty() && !needs_closure_) {
    optimizer_->param_groups()[0].params() = {no_memory_.detach().set_requires_grad(true)};
    optimizer_->param_groups()[0].params()[0].mutable_grad() = no_memory_;
  }
  for (auto& [parameter, stand_in] : stand_ins_) stand_in.tensor.mutable_grad() = no_memory_;
}

void ClientOptimizer::update(const std::vector<engine::ClientSegment>& segments) {
  if (needs_closure_) return;  // `run` has changed the parameters
  c10::AutoGradMode no_grad(false);
  if (stand_ins_.empty()) optimizer_->param_groups()[0].params().clear();
  fill(segments);
  try {
    optimizer_->step();
  } catch (const std::exception& error) {
    copy_all_back(segments, error.what());
    throw;
  } catch (...) {
    copy_all_back(segments, "an exception without a message");
    throw;
  }
  copy_all_back(segments, "");
}

/// Collective when the object gets whole parameters.
void ClientOptimizer::fill(const std::vector<engine::ClientSegment>& segments) {
  parts_.clear();
  given_.clear();
  const auto known = stand_ins_.size();
  for (const auto& segment : segments) {
    const bool whole = whole_parameters_->contains(segment.parameter);
    auto& [values, gradient] = (whole ? parts_ : given_)[segment.parameter];
    values = segment.values;
    if (segment.gradient.defined()) gradient = segment.gradient;
    if (whole || stand_ins_.contains(segment.parameter)) continue;
    // It was frozen when the engine was made, and is trained now.
    stand_ins_[segment.parameter] = {
        at::Tensor(), {segment.parameter, 0, segment.values.numel()}, inputs_[segment.parameter].group};
  }
  if (stand_ins_.size() != known) place_stand_ins();
  given_.merge(whole_parameters_->gather(parts_));
  for (const auto& [parameter, values] : given_) {
    auto& tensor = stand_ins_.at(parameter).tensor;
    tensor.set_data(values.first);
    tensor.mutable_grad() = values.second.value_or(at::Tensor());
  }
}

/// `failure`: that of this rank; empty: none. Collective when the object gets whole parameters. Errors: PeerError.
void ClientOptimizer::copy_all_back(const std::vector<engine::ClientSegment>& segments, const std::string& failure) {
  std::map<int, at::Tensor> whole;
  for (const auto& [parameter, values] : given_) {
    auto& stand_in = stand_ins_.at(parameter);
    if (stand_in.whole) whole[parameter] = stand_in.tensor.detach().view_as(values.first);
  }
  for (const auto& segment : segments) {
    if (!whole_parameters_->contains(segment.parameter)) copy_back(segment);
  }
  for (const auto& [parameter, values] : whole) stand_ins_.at(parameter).tensor.set_data(no_memory_);
  arm();
  given_.clear();
  const auto parts = std::exchange(parts_, {});
  if (whole_parameters_->agree(failure)) whole_parameters_->scatter(whole, parts);
}

/// Also copies values that the program's class has assigned as new tensors instead of changing them in place.
void ClientOptimizer::copy_back(const engine::ClientSegment& segment) {
  auto& tensor = stand_ins_.at(segment.parameter).tensor;
  if (tensor.data_ptr() != segment.values.data_ptr())
    segment.values.copy_(tensor.detach().reshape(segment.values.sizes()));
  tensor.set_data(no_memory_);
}

}  // namespace zeropage::cpp
