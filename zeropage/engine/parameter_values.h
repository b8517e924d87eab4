/// \file
/// Values of one parameter as programs read and write them between steps, independent of the place and type in which
/// they are kept: its fp32 value, its mean gradient, the optimizer's state.
///
///   1. Replaced parameters (`p.data = ...`) are adopted.
///   2. An update that has begun during the backward is undone for the parameter's page, so that values are those
///      before the step.
///   3. Each rank reads or writes its piece: the elements that it updates. A value that users wrote into a 16-bit
///      parameter counts more than the fp32 master, which follows it at the next step.
///   4. For a full value the ranks gather their pieces. To set one, each rank takes its piece of the given value, which
///      must be the same on all ranks.
#pragma once

#include "zeropage/memory/torch_config.h"

#include <string>
#include <vector>

#include "zeropage/comm/communicator.h"
#include "zeropage/config/config.h"
#include "zeropage/engine/model_state.h"
#include "zeropage/reduce/reducer.h"

namespace zeropage::engine {

class GradientViews;
class Speculation;

/// Which value of a parameter.
struct ValueName {
  enum class Kind { kParameter, kGradient, kState };
  Kind kind = Kind::kParameter;
  std::string state = {};  ///< for kState: a name of config::optimizer_state_names, for example "exp_avg"
};

class ParameterValues {
 public:
  ParameterValues(const config::Config& config, ModelState& state, reduce::Reducer& reducer, Speculation& speculation,
                  GradientViews& gradients, comm::Communicator& communicator, c10::Device device,
                  std::vector<std::int64_t>& updates);

  /// The value in fp32 and the parameter's shape, a new tensor on the device. Undefined: the parameter is not trained,
  /// or has no gradient now (for example within an accumulation window). Collective. Memory: twice the parameter in
  /// fp32. Errors: UsageError (not a parameter of this engine, a state that the optimizer does not have), PeerError,
  /// TimeoutError, IoError.
  at::Tensor full(const at::Tensor& parameter, const ValueName& name);

  /// Collective; `value` has the parameter's shape, any floating type, and is the same on all ranks. A gradient that is
  /// set for a parameter without one counts as received. Errors: UsageError (as `full`; another shape; a frozen
  /// parameter; a gradient within an accumulation window), IoError.
  void set_full(const at::Tensor& parameter, const ValueName& name, const at::Tensor& value);

  /// This rank's piece, flat in fp32; empty if the rank updates none of the parameter. Undefined in the cases of
  /// `full`. Not collective.
  at::Tensor local(const at::Tensor& parameter, const ValueName& name);

  /// `value` has the piece's number of elements. Collective for kParameter, since peers have copies. Errors: as
  /// set_full.
  void set_local(const at::Tensor& parameter, const ValueName& name, const at::Tensor& value);

  /// The full value from every rank's piece, for state of the caller's optimizer. Collective.
  at::Tensor assemble(const at::Tensor& parameter, const at::Tensor& piece);

  /// This rank's piece of a full value, flat.
  at::Tensor piece_of(const at::Tensor& parameter, const at::Tensor& value) const;

  /// The number of updates of the parameter, on which its next update depends. A value that is set must be the same on
  /// all ranks. Errors: UsageError (not a parameter of this engine).
  std::int64_t updates(const at::Tensor& parameter) const { return updates_[index_of(parameter)]; }
  void set_updates(const at::Tensor& parameter, std::int64_t updates) { updates_[index_of(parameter)] = updates; }

  /// Every rank's text, by rank, about the state of the caller's optimizer. Collective.
  std::vector<std::string> exchange(const std::string& mine);

 private:
  int index_of(const at::Tensor& parameter) const;
  bool is_trained(int parameter) const;
  const std::string& name_of(int parameter) const;
  int page_of(int parameter) const;
  int state_index(const std::string& state) const;
  void prepare(int parameter);
  void require_settable(int parameter, const ValueName& name) const;

  at::Tensor read_piece(int parameter, const ValueName& name);
  at::Tensor read_parameter(int parameter);
  at::Tensor read_gradient(int parameter);
  void write_state(int parameter, const ValueName& name, const at::Tensor& flat);
  void write_gradient(int parameter, const at::Tensor& mean);
  void set_parameter(int parameter, const at::Tensor& value);
  at::Tensor assemble(int parameter, const at::Tensor& piece);
  at::Tensor shaped(int parameter, const at::Tensor& flat) const;

  const config::Config& config_;
  ModelState& state_;
  reduce::Reducer& reducer_;
  Speculation& speculation_;
  GradientViews& gradients_;
  comm::Communicator& communicator_;
  c10::Device device_;
  std::vector<std::int64_t>& updates_;  // the engine's, by parameter
};

}  // namespace zeropage::engine
