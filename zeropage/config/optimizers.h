/// \file
/// The table of the optimizers whose update the engine computes. One entry says everything but the arithmetic: the name
/// in the configuration, the values per element that it keeps, and its hyperparameters with their keys, defaults and
/// ranges. Configuration, checkpoints, memory, parameter groups in C++ and in Python all read it.
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

/// A pair: both betas.
using HyperparameterValue = std::variant<double, bool, std::pair<double, double>>;

struct Hyperparameter {
  struct Betas {};  ///< beta1 and beta2 of OptimizerParams

  const char* name;  ///< in a parameter group, as torch.optim has it
  std::variant<double OptimizerParams::*, bool OptimizerParams::*, Betas> field;
  Key key;  ///< in optimizer.params

  HyperparameterValue get(const OptimizerParams& params) const;
  /// A number is taken for a flag, too, and the other way round. Errors: ConfigError when one is given for a pair, or a
  /// pair for one.
  void set(OptimizerParams& params, const HyperparameterValue& value) const;
};

struct OptimizerEntry {
  OptimizerKind kind;
  const char* type;  ///< of optimizer.type
  const char* doc;   ///< of its optimizer.params; neighbours with the same text share the section
  /// Values per element beside the master, as torch.optim names them. Null behind the last.
  std::array<const char*, kMaxOptimizerStates> states;
  bool state_needs_momentum;  ///< without momentum it keeps none
  std::vector<Hyperparameter> hyperparameters;
  std::vector<Key> other_keys;  ///< keys of optimizer.params that set no hyperparameter

  /// Null when it has none of this name.
  const Hyperparameter* find(std::string_view name) const;
};

const std::vector<OptimizerEntry>& optimizer_entries();

/// Null for kNone and kClient.
const OptimizerEntry* find_optimizer(OptimizerKind kind);

/// Null for a type that the engine does not update itself. With upper and lower case as in the table.
const OptimizerEntry* find_optimizer(std::string_view type);

/// Of any optimizer: a name means the same for all. Errors: ConfigError when none has it.
const Hyperparameter& find_hyperparameter(std::string_view name);

/// "adamw": what checkpoints and `Engine::optimizer_name` say. Empty for kNone and kClient.
std::string optimizer_name(OptimizerKind kind);

/// "Adam, AdamW, Lion, Adagrad, SGD, Lamb", for messages.
std::string optimizer_types();

}  // namespace zeropage::config
