/// \file
/// The optimizer's pass over the pages this rank owns, segment by segment: a parameter that received no gradient on any
/// rank is left untouched, moments and decay included, as PyTorch does.
#pragma once

#include "zeropage/memory/torch_config.h"

#include <functional>
#include <vector>

#include "zeropage/config/config.h"
#include "zeropage/engine/client_update.h"
#include "zeropage/engine/model_state.h"
#include "zeropage/engine/update_pass.h"
#include "zeropage/optim/update.h"
#include "zeropage/reduce/reducer.h"

namespace zeropage::engine {

class ClientValues;
class Speculation;

/// What this rank's part of the summed gradients amounts to.
struct GradientSum {
  double sum_of_squares = 0.0;
  std::int64_t overflow_parameter = -1;  ///< first parameter with inf or nan in this rank's part
};

/// From the squares that the reducer has summed on the way. Where every rank holds the whole sum each counts only its
/// shard, so that the ranks' results add up.
GradientSum sum_gradients(const ModelState& state, reduce::Reducer& reducer, int rank);

/// The hyperparameters of one step.
struct UpdateInputs {
  config::OptimizerKind kind = config::OptimizerKind::kAdamW;
  const std::vector<config::OptimizerParams>& groups;
  const std::vector<std::int64_t>& steps;  ///< per parameter: updates so far, the coming one included
  const std::vector<bool>& received;
  float gradient_scale = 1.0f;
  const ClientValues* from_caller = nullptr;  ///< of kClient: what the caller's optimizer has made
  std::vector<double> lamb_ratios = {};       ///< of kLamb, per parameter; for update_page
};

/// Errors: ConfigError when parameters without fp32 masters, or packed states, meet an update that cannot round them.
void require_one_pass(const config::Config& config, c10::Device device);

/// Errors: UsageError when hyperparameters of `groups` ask for state that `optimizer`, as the engine was made for, does
/// not have.
void require_states(const config::Optimizer& optimizer, const std::vector<config::OptimizerParams>& groups);

/// What this rank updates of the parameters that an optimizer has, also of those that are frozen now; in the order of
/// the pages.
std::vector<OwnedSegment> owned_segments(const ModelState& state);

/// The step of one parameter.
optim::Step step_of(const UpdateInputs& inputs, int group, int parameter);

/// What gradients in hand are multiples of: loss scale * pre-scale * sum over ranks, where the mean is wanted.
double gradient_divisor(const config::Config& config, int world_size, double loss_scale);

/// Pages of which a trained parameter received a gradient.
std::vector<int> updated_pages(const layout::Layout& layout, const std::vector<bool>& received);

/// What an update changes of this rank's range of a page.
struct ChangedSegments {
  std::vector<Segment> segments;
  std::vector<int> parameters;  ///< of each
  bool all = true;              ///< no parameter is left out
};

ChangedSegments changed_segments(const ModelState& state, int page, const UpdateInputs& inputs);

/// Updates this rank's range of each of `pages`: fp32 master and states, and the rounded parameter; calls
/// `updated(page)` for each, in their order, when its update has started. Pages whose state is on the host use the
/// fused kernel on all of torch's threads (host_update.h; one pass), those on a device its kernels, many pages at once,
/// or torch's operators (device_update.h); what an optimizer of the caller's has made is put in its place and rounded.
/// While one is updated the next one's arrays are on their way. Pages that `speculation` has updated already are
/// finished in their turn.
void update_pages(UpdatePass& pass, std::vector<int> pages, const UpdateInputs& inputs, Speculation& speculation,
                  const std::function<void(int page)>& updated);

}  // namespace zeropage::engine
