/// \file
/// The table of the optimizers whose update the engine computes. An entry has everything except the arithmetic: the
/// name in the configuration, the values per element that it keeps, and its hyperparameters with their keys, defaults
/// and ranges. Configuration, checkpoints, memory, and parameter groups in C++ and Python all read this table.
#pragma once

#include <array>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "zeropage/config/config.h"
#include "zeropage/config/schema.h"

namespace zeropage::config {

/// The pair is for both betas.
using HyperparameterValue = std::variant<double, bool, std::pair<double, double>>;

struct Hyperparameter {
  struct Betas {};  ///< beta1 and beta2 of OptimizerParams

  const char* name;  ///< its name in a parameter group and in torch.optim
  std::variant<double OptimizerParams::*, bool OptimizerParams::*, Betas> field;
  Key key;  ///< its key in optimizer.params

  HyperparameterValue get(const OptimizerParams& params) const;
  /// Converts between numbers and flags. Errors: ConfigError when one value is given for a pair, or a pair for one
  /// value.
  void set(OptimizerParams& params, const HyperparameterValue& value) const;
};

struct OptimizerEntry {
  OptimizerKind kind;
  const char* type;  ///< the value of optimizer.type
  const char* doc;   ///< documentation of its optimizer.params; neighbours with the same text share a section
  /// The values per element in addition to the master, with their names in torch.optim. Null after the last.
  std::array<const char*, kMaxOptimizerStates> states;
  std::array<bool, kMaxOptimizerStates> squares;  ///< the state is a mean or a sum of squares, so it has no sign
  bool state_needs_momentum;                      ///< without momentum it keeps no state
  std::vector<Hyperparameter> hyperparameters;
  std::vector<Key> other_keys;  ///< keys of optimizer.params that set no hyperparameter

  /// The hyperparameter of this name, or null.
  const Hyperparameter* find(std::string_view name) const;
};

const std::vector<OptimizerEntry>& optimizer_entries();

/// Null for kNone and kClient.
const OptimizerEntry* find_optimizer(OptimizerKind kind);

/// Null for a type whose update the engine does not compute. Case-sensitive.
const OptimizerEntry* find_optimizer(std::string_view type);

/// The hyperparameter of this name of any optimizer: a name has the same meaning in all. Errors: ConfigError when no
/// optimizer has it.
const Hyperparameter& find_hyperparameter(std::string_view name);

/// The hyperparameters that determine the size and the initial values of the optimizer's state, for all groups. Errors:
/// ConfigError when groups have different initial sums of squares.
OptimizerParams params_for_state(const std::vector<OptimizerParams>& groups);

/// The name in checkpoints and of `Engine::optimizer_name`, such as "adamw". Empty for kNone and kClient.
std::string optimizer_name(OptimizerKind kind);

/// "Adam, AdamW, Lion, Adagrad, SGD, Lamb", for messages.
std::string optimizer_types();

}  // namespace zeropage::config
