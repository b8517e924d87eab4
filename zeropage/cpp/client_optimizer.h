/// \file
/// An optimizer object of the program (of torch::optim, or of its own class) that the engine runs, as Python's
/// torch_optimizer.py does:
///
///   1. After `attach` its groups contain stand-ins, one for each parameter that this rank updates, completely or in
///      part. The keys of its state are the stand-ins.
///   2. An update fills the stand-ins with views of fp32 copies of those parts and of their gradients, and calls the
///      object's `step` once.
///   3. Between updates stand-ins have no memory: an `optimizer.step()` that was left in the program raises an error
///      with this reason.
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
  /// Errors: ConfigError for an optimizer that cannot run here, or for which this is unknown.
  ClientOptimizer(std::shared_ptr<torch::optim::Optimizer> optimizer, const config::Config& config, int world_size);
  ~ClientOptimizer();
  ClientOptimizer(const ClientOptimizer&) = delete;

  const std::string& name() const { return name_; }  ///< the name of its class in lower case: "rmsprop"

  /// Its groups, without hyperparameters, which stay in the object.
  std::vector<ParameterGroup> groups() const;

  /// The groups for the engine and its schedule: learning rates, if the options have them.
  std::vector<config::OptimizerParams> engine_groups() const;

  /// Sets the learning rates of the groups. Errors: UsageError when options have no learning rate.
  void set_rates(const std::vector<config::OptimizerParams>& groups);

  /// Per group: betas; or momentum and 0.
  std::vector<std::pair<double, double>> momenta() const;

  /// Facts that must be the same on all ranks, one per line.
  std::string facts() const;

  /// Marks the parameters that the object gets whole, before the engine gets them.
  void note_whole(std::vector<engine::ParameterInput>& inputs) const;

  /// `inputs`: the parameters that the engine got. With NVMe offload Muon's state is on the drive from now on.
  /// Collective. Errors: IoError.
  void attach(const engine::Engine& core, const std::vector<engine::ParameterInput>& inputs,
              const config::Config& config, std::shared_ptr<comm::Communicator> communicator, c10::Device device);

  /// Adds a group, with the object's defaults except for the rate. When the engine has its parameters, call `extend`.
  /// Errors: ConfigError.
  void add_group(const ParameterGroup& group);

  /// Collective.
  void extend(const engine::Engine& core, const std::vector<engine::ParameterInput>& added);

  /// The object's own tensor of an elementwise state. Undefined: there is none yet, or this rank has no elements.
  at::Tensor local(const at::Tensor& parameter, const std::string& state) const;
  void set_local(const at::Tensor& parameter, const std::string& state, const at::Tensor& value);

  /// Whether the object gets the whole parameter, on one of the ranks.
  bool sees_whole(const at::Tensor& parameter) const;

  /// For such a parameter: the owner's elementwise state, in the parameter's shape; undefined: there is none.
  /// Collective.
  at::Tensor full(const at::Tensor& parameter, const std::string& state);
  void set_full(const at::Tensor& parameter, const std::string& state, const at::Tensor& value);

  /// Bytes of its state's tensors in memory, of the device and of the host.
  std::array<std::int64_t, 2> bytes_on(c10::Device device) const;

  /// True for LBFGS: `run` runs it, and `update` changes nothing.
  bool needs_closure() const { return needs_closure_; }

  /// One update. Errors: whatever its `step` throws.
  void update(const std::vector<engine::ClientSegment>& segments);

  /// One step of an optimizer that evaluates the loss itself. `loss`: forward and backward; what it returns is the same
  /// on all ranks.
  at::Tensor run(const std::function<at::Tensor()>& loss) { return optimizer_->step(loss); }

  /// Gives the stand-ins gradients again: `zero_grad()` of the program removes them, and without them a `step()` would
  /// do nothing, without an error.
  void arm();

  // -- checkpoints

  /// Whether a checkpoint can contain its state: true for all of torch::optim except LBFGS, and for other classes that
  /// save and load like these.
  bool is_saved() const;

  std::vector<engine::CallerState> states() const;

  /// State of the parameters that the object gets whole and that this rank owns: tensors by their names in a
  /// checkpoint.
  std::map<std::string, at::Tensor> whole_states(int rank) const;

  /// Hyperparameters per group, as `states` by name.
  std::vector<ArchiveItems> options() const;

  /// State of this rank's elements from a checkpoint. Errors: CheckpointError, IoError.
  std::map<int, ArchiveItems> read(checkpoint::Checkpoint& step) const;

  /// Sets states and options. `options`: by the names of this object's own options.
  void load(const std::map<int, ArchiveItems>& states, const std::vector<ArchiveItems>& options);

 private:
  struct StandIn {
    at::Tensor tensor;
    engine::OwnedSegment segment;
    int group = 0;
    std::optional<session::WholeShape> whole = {};  // set if it is the whole parameter, in this shape

    bool has(const at::Tensor& value) const;          // whether it has a value for each element
    at::Tensor flat(const at::Tensor& value) const;   // in the parameter's order in memory
    at::Tensor shaped(const at::Tensor& flat) const;  // in the shape in which the object keeps it
  };
  bool takes_whole(int group) const;
  ArchiveItems items_of_state(const torch::optim::OptimizerParamState& state) const;
  void learn(const engine::Engine& core);
  void fill(const std::vector<engine::ClientSegment>& segments);
  void copy_all_back(const std::vector<engine::ClientSegment>& segments, const std::string& failure);
  const StandIn* stand_in_of(const at::Tensor& parameter) const;
  void place_stand_ins();
  void begin_state(const StandIn& stand_in);
  void copy_back(const engine::ClientSegment& segment);

  std::shared_ptr<torch::optim::Optimizer> optimizer_;
  std::string class_name_;
  std::string name_;
  bool is_torchs_ = false;                      // and its update is elementwise
  bool is_muon_ = false;                        // the Muon of the configuration
  bool sees_whole_ = false;                     // for all of its groups
  bool needs_closure_ = false;                  // LBFGS
  std::vector<std::vector<at::Tensor>> whole_;  // the program's parameters, by group
  std::vector<engine::ParameterInput> inputs_;
  std::map<int, StandIn> stand_ins_;  // by parameter
  std::optional<session::WholeParameters> whole_parameters_;
  std::map<int, session::ValuesAndGradient> parts_;  // during an update: this rank's parts of whole parameters
  std::map<int, session::ValuesAndGradient> given_;  // and the values that the object gets
  at::Tensor no_memory_;
};

}  // namespace zeropage::cpp
