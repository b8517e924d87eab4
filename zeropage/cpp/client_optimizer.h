/// \file
/// An optimizer object of the program's (of torch::optim, or a class of its own) that the engine runs, as Python's
/// torch_optimizer.py does:
///
///   1. From `attach` on its groups hold stand-ins, one for each parameter of which this rank updates a part. Its state
///      is keyed by them.
///   2. An update fills the stand-ins with views of fp32 copies of those parts and of their gradients, and calls the
///      object's `step` once.
///   3. Between updates stand-ins have no memory: an `optimizer.step()` that was left in the program raises an error
///      that says so.
///   4. At the end the groups get the program's parameters back.
///
/// That is exact for optimizers that treat every element alike. Muon, and any object with "zeropage.optimizer_sees":
/// "parameters", gets whole parameters in their shapes, each on one rank: session/whole_parameters.h. LBFGS, which
/// needs all parameters and many evaluations, works on the program's own parameters instead, at stage 0: see `run`.
#pragma once

#include "zeropage/memory/torch_config.h"

#include <torch/optim/optimizer.h>

#include <array>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "zeropage/config/config.h"
#include "zeropage/cpp/archive_items.h"
#include "zeropage/cpp/options.h"
#include "zeropage/engine/checkpoint.h"
#include "zeropage/engine/client_update.h"
#include "zeropage/engine/engine.h"
#include "zeropage/session/whole_parameters.h"

namespace zeropage::cpp {

class ClientOptimizer {
 public:
  /// Errors: ConfigError for an optimizer that cannot run here, or of which nobody has said that it can.
  ClientOptimizer(std::shared_ptr<torch::optim::Optimizer> optimizer, const config::Config& config, int world_size);
  ~ClientOptimizer();
  ClientOptimizer(const ClientOptimizer&) = delete;

  const std::string& name() const { return name_; }  ///< of its class, in small letters: "rmsprop"

  /// Its groups; hyperparameters stay with it.
  std::vector<ParameterGroup> groups() const;

  /// What the engine and its schedule know of the groups: learning rates, where the options have one.
  std::vector<config::OptimizerParams> engine_groups() const;

  /// The other way. Errors: UsageError where options have no learning rate.
  void set_rates(const std::vector<config::OptimizerParams>& groups);

  /// Per group: betas; or momentum and 0.
  std::vector<std::pair<double, double>> momenta() const;

  /// What must be the same on all ranks, a line per fact.
  std::string facts() const;

  /// Before the engine is given parameters: marks those that the object sees whole.
  void note_whole(std::vector<engine::ParameterInput>& inputs) const;

  /// `inputs`: what the engine was given. Collective.
  void attach(const engine::Engine& core, const std::vector<engine::ParameterInput>& inputs,
              std::shared_ptr<comm::Communicator> communicator, c10::Device device);

  /// One more group, with the object's defaults but for the rate; then, when the engine has its parameters, `extend`.
  /// Errors: ConfigError.
  void add_group(const ParameterGroup& group);

  /// Collective.
  void extend(const engine::Engine& core, const std::vector<engine::ParameterInput>& added);

  /// The object's own tensor of a state by the element. Undefined: there is none yet, or this rank has no elements.
  at::Tensor local(const at::Tensor& parameter, const std::string& state) const;
  void set_local(const at::Tensor& parameter, const std::string& state, const at::Tensor& value);

  /// Whether the object sees all of the parameter, on whatever rank.
  bool sees_whole(const at::Tensor& parameter) const;

  /// Of such a parameter: the owner's state by the element, in the parameter's shape; undefined: there is none.
  /// Collective.
  at::Tensor full(const at::Tensor& parameter, const std::string& state);
  void set_full(const at::Tensor& parameter, const std::string& state, const at::Tensor& value);

  /// Bytes of its state's tensors in the memory of the device, and elsewhere, which is the host.
  std::array<std::int64_t, 2> bytes_on(c10::Device device) const;

  /// True of LBFGS: it is run by `run`, and `update` changes nothing.
  bool needs_closure() const { return needs_closure_; }

  /// One update. Errors: whatever its `step` throws.
  void update(const std::vector<engine::ClientSegment>& segments);

  /// One step of an optimizer that evaluates the loss itself. `loss`: forward and backward; what it returns is the same
  /// on all ranks.
  at::Tensor run(const std::function<at::Tensor()>& loss) { return optimizer_->step(loss); }

  /// `zero_grad()` of the program's takes the stand-ins' gradients away; without them a `step()` would do nothing, in
  /// silence.
  void arm();

  // -- checkpoints

  /// Whether a checkpoint can hold its state: all of torch::optim but LBFGS; others that save and load as those do.
  bool is_saved() const;

  std::vector<engine::CallerState> states() const;

  /// State of the parameters that the object sees whole and this rank owns: tensors by their names in a checkpoint.
  std::map<std::string, at::Tensor> whole_states(int rank) const;

  /// Hyperparameters per group, as `states` by name.
  std::vector<ArchiveItems> options() const;

  /// State of this rank's elements from a checkpoint. Errors: CheckpointError, IoError.
  std::map<int, ArchiveItems> read(checkpoint::Checkpoint& step) const;

  /// Puts both in place. `options` as this object's own, name by name.
  void load(const std::map<int, ArchiveItems>& states, const std::vector<ArchiveItems>& options);

 private:
  struct StandIn {
    at::Tensor tensor;
    engine::OwnedSegment segment;
    int group = 0;
    std::optional<session::WholeShape> whole = {};  // it is all of the parameter, in this shape

    bool has(const at::Tensor& value) const;          // for each element a value
    at::Tensor flat(const at::Tensor& value) const;   // in the order in which the parameter lies in memory
    at::Tensor shaped(const at::Tensor& flat) const;  // as the object keeps it
  };
  bool takes_whole(int group) const;
  void learn(const engine::Engine& core);
  void fill(const std::vector<engine::ClientSegment>& segments);
  void take_all_back(const std::vector<engine::ClientSegment>& segments, const std::string& failure);
  const StandIn* stand_in_of(const at::Tensor& parameter) const;
  void place_stand_ins();
  void begin_state(const StandIn& stand_in);
  void take_back(const engine::ClientSegment& segment);

  std::shared_ptr<torch::optim::Optimizer> optimizer_;
  std::string class_name_;
  std::string name_;
  bool is_torchs_ = false;                      // and treats every element alike
  bool is_muon_ = false;                        // of the configuration
  bool sees_whole_ = false;                     // all of its groups
  bool needs_closure_ = false;                  // LBFGS
  std::vector<std::vector<at::Tensor>> whole_;  // the program's parameters, by group
  std::vector<engine::ParameterInput> inputs_;
  std::map<int, StandIn> stand_ins_;  // by parameter
  std::optional<session::WholeParameters> whole_parameters_;
  std::map<int, session::ValuesAndGradient> parts_;  // in an update: of whole parameters, what this rank updates
  std::map<int, session::ValuesAndGradient> given_;  // and what the object gets
  at::Tensor no_memory_;
};

}  // namespace zeropage::cpp
