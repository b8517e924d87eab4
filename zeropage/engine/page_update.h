/// \file
/// The optimizer's pass over the pages this rank owns, segment by segment: a parameter without a gradient on any rank
/// does not change, and neither do its moments, also with weight decay; PyTorch does the same.
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

/// Figures of this rank's part of the summed gradients.
struct GradientSum {
  double sum_of_squares = 0.0;
  std::int64_t overflow_parameter = -1;  ///< first parameter with inf or nan in this rank's part
};

/// From the squares that the reducer has summed. If every rank has the whole sum, each counts only its shard, so that
/// the ranks' results add up.
GradientSum sum_gradients(const ModelState& state, reduce::Reducer& reducer, int rank);

/// The hyperparameters of one step.
struct UpdateInputs {
  config::OptimizerKind kind = config::OptimizerKind::kAdamW;
  const std::vector<config::OptimizerParams>& groups;
  const std::vector<std::int64_t>& steps;  ///< per parameter: updates including this one
  const std::vector<bool>& received;
  float gradient_scale = 1.0f;
  const ClientValues* from_caller = nullptr;  ///< for kClient: the results of the caller's optimizer
  std::vector<double> lamb_ratios = {};       ///< for kLamb, per parameter; for update_page
};

/// Errors: ConfigError when the configuration has parameters without fp32 masters, or packed states, and the update
/// cannot round them.
void require_one_pass(const config::Config& config, c10::Device device);

/// Errors: UsageError when hyperparameters of `groups` need state that `optimizer`, with which the engine was made,
/// does not have.
void require_states(const config::Optimizer& optimizer, const std::vector<config::OptimizerParams>& groups);

/// The segments that this rank updates, of the parameters that an optimizer has, including those that are frozen now;
/// in the order of the pages.
std::vector<OwnedSegment> owned_segments(const ModelState& state);

/// The step of one parameter.
optim::Step step_of(const UpdateInputs& inputs, int group, int parameter);

/// The divisor that makes means of the summed gradients: loss scale * pre-scale * number of summed ranks.
double gradient_divisor(const config::Config& config, int world_size, double loss_scale);

/// Pages with a trained parameter that received a gradient.
std::vector<int> updated_pages(const layout::Layout& layout, const std::vector<bool>& received);

/// The segments of this rank's range of a page that an update changes.
struct ChangedSegments {
  std::vector<UpdateSegment> segments;
  std::vector<int> parameters;  ///< the parameter of each segment
  bool all = true;              ///< no parameter is left out
};

ChangedSegments changed_segments(const ModelState& state, int page, const UpdateInputs& inputs);

/// Updates this rank's range of each of `pages`: fp32 master and states, and the rounded parameter; calls
/// `updated(page)` for each, in their order, when its update has started. Pages whose state is on the host use the
/// fused kernel on all of torch's threads (host_update.h; one pass), those on a device its kernels, many pages at once,
/// or torch's operators (device_update.h); the results of a caller's optimizer are written to the masters and rounded.
/// While one page is updated, the arrays of the next one are copied. Pages that `speculation` has updated already are
/// finished in order.
void update_pages(UpdatePass& pass, std::vector<int> pages, const UpdateInputs& inputs, Speculation& speculation,
                  const std::function<void(int page)>& updated);

}  // namespace zeropage::engine
