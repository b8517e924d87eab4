/// \file
/// Options of a program in addition to the configuration.
#pragma once

#include <ATen/core/Tensor.h>

#include <memory>
#include <optional>
#include <utility>
#include <vector>

namespace torch::optim {
class Optimizer;
}

namespace zeropage {

namespace comm {
class Communicator;
}

/// Parameters with the same hyperparameters. Absent hyperparameters are those of the configuration. A hyperparameter
/// that the configured optimizer does not have is a ConfigError.
struct ParameterGroup {
  std::vector<at::Tensor> parameters{};
  std::optional<double> lr{};
  std::optional<std::pair<double, double>> betas{};  ///< Adam, AdamW, Lion, Lamb
  std::optional<double> eps{};                       ///< Adam, AdamW, Adagrad, Lamb
  std::optional<double> weight_decay{};
  std::optional<bool> bias_correction{};         ///< Adam, AdamW, Lamb
  std::optional<bool> decoupled_weight_decay{};  ///< Adam, AdamW; false: L2 added to the gradient
  std::optional<double> momentum{};              ///< SGD, as the next two
  std::optional<double> dampening{};
  std::optional<bool> nesterov{};
  std::optional<double> lr_decay{};                   ///< Adagrad, as the next one
  std::optional<double> initial_accumulator_value{};  ///< the same for all groups
  std::optional<double> max_coeff{};                  ///< Lamb, as the next two: limits of the trust ratio
  std::optional<double> min_coeff{};
  std::optional<bool> eps_inside_sqrt{};
  std::optional<bool> use_muon{};  ///< Muon: whether it updates them, or AdamW; absent: by name and dimensions
  std::optional<std::int64_t> muon_heads{};  ///< Muon with per_head_muon: attention heads that their rows are

  /// Whether everything except the parameters is equal.
  bool has_same_options(const ParameterGroup& other) const;
};

struct Options {
  std::vector<ParameterGroup>
      parameter_groups;  ///< the parameters that the optimizer updates; empty: all trainable ones

  /// The optimizer that updates the parameters instead of the configured one: an object of torch::optim with the
  /// module's parameters, or of the program's own class. For such a class the configuration must tell on which data its
  /// step depends: "zeropage": {"optimizer_sees": "elements" | "parameters" | "model"}; see docs/optimizers.md. The
  /// engine calls its `step` once per update with the parts, or the whole parameters, that this rank updates; its
  /// groups hold stand-ins for them until the engine ends. Memory in addition to its state: 4 bytes per element while
  /// it runs. LBFGS runs at stage 0, by `engine.step(closure)`.
  std::shared_ptr<torch::optim::Optimizer> optimizer{};
  std::shared_ptr<comm::Communicator> communicator{};  ///< null: made for the ranks in the environment's variables
  std::shared_ptr<comm::Communicator> reductions{};    ///< a second one for gradients; two-sided transports need it
  std::shared_ptr<comm::Communicator> saves{};         ///< a third one; zeropage.async_save needs it
  std::optional<at::Device> device{};                  ///< absent: the CPU; ranks with a GPU each: its own one
};

}  // namespace zeropage
