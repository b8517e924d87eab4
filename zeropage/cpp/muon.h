/// \file
/// The optimizer object of C++ programs with "type": "Muon" in the configuration. Python's zeropage/muon.py is its
/// counterpart: both use the formulas of session/muon.h, and each can load the other's checkpoints.
#pragma once

#include "zeropage/memory/torch_config.h"

#include <torch/optim/optimizer.h>

#include <array>
#include <memory>
#include <string>
#include <vector>

#include "zeropage/config/config.h"
#include "zeropage/cpp/options.h"
#include "zeropage/session/muon.h"
#include "zeropage/session/tensors_on_drive.h"

namespace torch::nn {
class Module;
}

namespace zeropage::cpp {

/// Hyperparameters of a group: of matrices, which Muon updates, or of other parameters, which AdamW updates.
struct MuonGroupOptions : torch::optim::OptimizerCloneableOptions<MuonGroupOptions> {
  /// torch constructs them from a learning rate when it loads.
  explicit MuonGroupOptions(double lr = 0.02) { muon.lr = lr; }

  bool use_muon = true;
  session::MuonOptions muon;
  session::MuonAdamOptions adam;

  void serialize(torch::serialize::InputArchive& archive) override;
  void serialize(torch::serialize::OutputArchive& archive) const override;
  double get_lr() const override { return use_muon ? muon.lr : adam.lr; }
  void set_lr(double lr) override { (use_muon ? muon.lr : adam.lr) = lr; }
};

/// The state of a parameter: `momentum_buffer` for Muon, the others for AdamW.
struct MuonState : torch::optim::OptimizerCloneableParamState<MuonState> {
  at::Tensor momentum_buffer;
  std::int64_t step = 0;
  at::Tensor exp_avg;
  at::Tensor exp_avg_sq;

  std::array<at::Tensor*, 3> tensors() { return {&momentum_buffer, &exp_avg, &exp_avg_sq}; }

  void serialize(torch::serialize::InputArchive& archive) override;
  void serialize(torch::serialize::OutputArchive& archive) const override;
};

class Muon : public torch::optim::Optimizer {
 public:
  explicit Muon(const std::vector<torch::optim::OptimizerParamGroup>& groups);

  /// Errors: UsageError for a closure.
  at::Tensor step(LossClosure closure = nullptr) override;
  void save(torch::serialize::OutputArchive& archive) const override;
  void load(torch::serialize::InputArchive& archive) override;

  /// From now on a parameter's state is on `drive` except while it is updated; momenta stay in memory if
  /// `momenta_stay`.
  void keep_on(std::shared_ptr<session::TensorsOnDrive> drive, bool momenta_stay);

  /// Moves all state to the drive, if there is one: after a load. Errors: IoError.
  void move_to_drive();

  /// A copy of a parameter's state with what is on the drive. Errors: IoError.
  MuonState read(const MuonState& state) const;

  /// A copy without what is on the drive.
  MuonState in_memory(const MuonState& state) const;

 private:
  void move_to_drive(const MuonState& state) const;

  std::shared_ptr<session::TensorsOnDrive> drive_;
  bool momenta_stay_ = false;
};

/// The object that the section "optimizer" of `config` names. Each of `groups` (empty: one of all parameters) is
/// divided into matrices and others: ParameterGroup::use_muon, else planner::takes_muon. Errors: ConfigError for
/// hyperparameters of a group that Muon does not have, for per_head_muon without muon_heads or the other way round, and
/// for heads that do not fit.
std::shared_ptr<Muon> make_muon(const config::Config& config, torch::nn::Module& model,
                                const std::vector<ParameterGroup>& groups);

/// Whether the configuration names Muon.
bool is_muon(const config::Config& config);

}  // namespace zeropage::cpp
