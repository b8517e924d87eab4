#include "zeropage/engine/page_update.h"

#include <c10/core/GradMode.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "zeropage/base/error.h"
#include "zeropage/config/optimizers.h"
#include "zeropage/engine/agreement.h"
#include "zeropage/engine/client_values.h"
#include "zeropage/engine/device_update.h"
#include "zeropage/engine/host_update.h"
#include "zeropage/engine/lamb_update.h"
#include "zeropage/engine/speculation.h"
#include "zeropage/engine/streamed_state_store.h"

namespace zeropage::engine {
namespace {

/// The changed elements, as one segment if that is all of the range.
std::vector<UpdateSegment> changed_runs(const ChangedSegments& changed) {
  if (!changed.all || changed.segments.empty()) return changed.segments;
  const auto& last = changed.segments.back();
  return {{0, last.offset + last.numel, {}}};
}

/// `values` [numel, fp32] replace a range's masters, and parameters are rounded from them.
void put_values(const optim::Arrays& range, const at::Tensor& values, c10::Device device) {
  memory::flat_view(range.master, values.numel(), at::kFloat, device).copy_(values);
  if (range.parameter_dtype == DType::kFloat32) return;
  memory::flat_view(range.parameter, values.numel(), scalar_type_of(range.parameter_dtype), device).copy_(values);
}

void run_update(const optim::Arrays& range, const std::vector<UpdateSegment>& segments,
                const std::vector<int>& parameters, const UpdateInputs& inputs, c10::Device device) {
  if (inputs.kind == config::OptimizerKind::kLamb) {
    for (std::size_t i = 0; i < segments.size(); ++i) {
      lamb_move(segments[i].of(range), segments[i].numel, segments[i].step, inputs.lamb_ratios[parameters[i]], device);
    }
    return;
  }
  if (device.is_cpu()) return update_on_host(range, segments);
  update_on_device({{range, segments}}, device);
}

ParameterUse use_of(const ModelState& state, int page, const UpdateInputs& inputs) {
  const auto& placements = state.layout()->pages()[page].placements;
  const bool all_received = std::all_of(placements.begin(), placements.end(),
                                        [&](const auto& place) { return inputs.received[place.parameter]; });
  return state.has_masters(page) && all_received ? ParameterUse::kReplaced : ParameterUse::kChanged;
}

/// The changes of a page, with the addresses of gradients that the reducer keeps.
ChangedSegments located_segments(const UpdatePass& pass, int page, const UpdateInputs& inputs) {
  auto changed = changed_segments(pass.state(), page, inputs);
  for (std::size_t i = 0; i < changed.segments.size(); ++i) {
    changed.segments[i].gradient = pass.kept_gradient(page, changed.parameters[i]);
  }
  return changed;
}

/// Updates of pages for which nothing has to be copied, done jointly by our own kernels of a device with few launches.
class JointUpdate {
 public:
  JointUpdate(UpdatePass& pass, const UpdateInputs& inputs) : pass_(pass), inputs_(inputs) {}

  bool takes(int page) const {
    return has_kernels(pass_.state().state_store().device(page)) && pass_.is_in_place(page) &&
           inputs_.from_caller == nullptr && inputs_.kind != config::OptimizerKind::kLamb;
  }

  void add(int page) {
    const HeldArrays held(pass_, page, use_of(pass_.state(), page, inputs_));
    auto changed = located_segments(pass_, page, inputs_);
    segments_ += changed.segments.size();
    ranges_.push_back({held.arrays(), std::move(changed.segments)});
    device_ = held.device();
  }

  std::size_t segments() const { return segments_; }

  /// Starts the added updates.
  void start() {
    if (segments_ > 0) update_on_device(ranges_, device_);
    ranges_.clear();
    segments_ = 0;
  }

 private:
  UpdatePass& pass_;
  const UpdateInputs& inputs_;
  std::vector<RangeUpdate> ranges_;
  std::size_t segments_ = 0;
  c10::Device device_{c10::kCPU};
};

void update_page(UpdatePass& pass, int page, const UpdateInputs& inputs) {
  const ModelState& state = pass.state();
  const Span span(state.pager().handle()->timeline.get(), SpanKind::kOperator, "update of a page", page);
  const bool from_caller = inputs.from_caller != nullptr;
  const HeldArrays held(pass, page, use_of(state, page, inputs), Access::kWrite,
                        from_caller ? GradientUse::kNone : GradientUse::kRead);
  const auto changed = located_segments(pass, page, inputs);
  if (from_caller) {
    put_values(held.arrays(), inputs.from_caller->of_page(page), held.device());
  } else {
    run_update(held.arrays(), changed.segments, changed.parameters, inputs, held.device());
  }
  pass.write_back(page, changed_runs(changed));
}

}  // namespace

GradientSum sum_gradients(const ModelState& state, reduce::Reducer& reducer, int rank) {
  GradientSum sum;
  for (const auto& page : state.layout()->pages()) {
    const auto squares_of = reducer.squares(page.index);
    if (squares_of.empty()) continue;
    std::size_t next = 0;
    for (const auto& segment : state.layout()->shard_segments(page.index, rank)) {
      const double squares = squares_of[next++];
      if (!std::isfinite(squares)) sum.overflow_parameter = first_parameter(sum.overflow_parameter, segment.parameter);
      sum.sum_of_squares += squares;
    }
  }
  return sum;
}

void require_one_pass(const config::Config& config, c10::Device device) {
  const bool one_pass = optim::takes_one_pass(config.optimizer.kind);
  if (!config.fp32_masters && !one_pass) {
    std::vector<std::string> types;
    for (const auto& entry : config::optimizer_entries()) {
      if (optim::takes_one_pass(entry.kind)) types.emplace_back(entry.type);
    }
    throw ConfigError(
        fmt::format("fp16_master_weights_and_grads and bf16_master_weights_and_grads need an optimizer among {}; leave "
                    "the key out",
                    fmt::join(types, ", ")));
  }
  const auto& offload = config.zero.offload;
  const bool streamed = is_updated_on_device(config, device);
  if (streamed && config.optimizer.kind == config::OptimizerKind::kClient) {
    throw ConfigError(
        "zeropage.offloaded_update: expected \"host\" or \"auto\" with an optimizer that PyTorch runs, which updates "
        "offloaded state on the host, got \"device\"");
  }
  const bool on_host = device.is_cpu() || (offload.optimizer != config::OffloadDevice::kNone &&
                                           offload.optimizer_ratio == 1.0 && !streamed);
  const bool packed = config.state_dtype != config::StateDtype::kFloat32;
  if ((config.fp32_masters && !packed) || on_host || (one_pass && has_kernels(device))) return;
  throw ConfigError(fmt::format(
      "{} are updated on the host, and on GPUs by Zeropage's CUDA kernels, which {}: offload all of the optimizer "
      "(zero_optimization.offload_optimizer with ratio 1, zeropage.offloaded_update \"host\"), or leave the key out",
      packed ? "moments in bf16 or int8 (bf16.bf16_optimizer_states, zeropage.optimizer_state_dtype)"
             : "parameters without fp32 masters (fp16_master_weights_and_grads, bf16_master_weights_and_grads)",
      one_pass ? "this build does not have for this device" : "do not have this optimizer"));
}

void require_states(const config::Optimizer& optimizer, const std::vector<config::OptimizerParams>& groups) {
  const int there = config::optimizer_state_count(optimizer);
  for (std::size_t i = 0; i < groups.size(); ++i) {
    const int needed = config::optimizer_state_count({optimizer.kind, groups[i]});
    if (needed <= there) continue;
    throw UsageError(
        fmt::format("parameter group {} needs {} state(s) per element, and there are {}: a momentum that is to be "
                    "switched on later must not be 0 when the engine is made",
                    i, needed, there));
  }
}

std::vector<OwnedSegment> owned_segments(const ModelState& state) {
  std::vector<OwnedSegment> segments;
  for (const auto& page : state.layout()->pages()) {
    if (page.group < 0) continue;
    const auto& own = state.owned(page.index);
    for (const auto& segment : state.layout()->segments(page.index, own.begin, own.begin + own.numel)) {
      segments.push_back({segment.parameter, segment.parameter_offset, segment.numel});
    }
  }
  return segments;
}

optim::Step step_of(const UpdateInputs& inputs, int group, int parameter) {
  optim::Step step{inputs.kind, inputs.groups[group], inputs.steps[parameter], inputs.gradient_scale};
  step.rounding_key = static_cast<std::uint64_t>(parameter) << 32 | static_cast<std::uint32_t>(step.step);
  return step;
}

double gradient_divisor(const config::Config& config, int world_size, double loss_scale) {
  const auto& gradients = config.gradients;
  const double pre_scale = gradients.prescale ? 1.0 / gradients.predivide_factor : 1.0;
  const double mean = gradients.sum_instead_of_mean ? 1.0 : static_cast<double>(world_size);
  return loss_scale * pre_scale * mean;
}

std::vector<int> updated_pages(const layout::Layout& layout, const std::vector<bool>& received) {
  std::vector<int> updated;
  for (const auto& page : layout.pages()) {
    const auto got = [&](const layout::Placement& place) { return received[place.parameter]; };
    if (page.trainable && std::any_of(page.placements.begin(), page.placements.end(), got)) {
      updated.push_back(page.index);
    }
  }
  return updated;
}

ChangedSegments changed_segments(const ModelState& state, int page, const UpdateInputs& inputs) {
  const auto& own = state.owned(page);
  ChangedSegments changed;
  const int group = state.layout()->pages()[page].group;
  for (const auto& piece : pieces_of(*state.layout(), page, own.begin, own.begin + own.numel)) {
    if (!inputs.received[piece.parameter]) {
      changed.all = false;
      continue;
    }
    changed.segments.push_back({piece.offset, piece.numel, step_of(inputs, group, piece.parameter), piece.block});
    changed.segments.back().step.rounding_shift = piece.parameter_offset - piece.offset;
    changed.parameters.push_back(piece.parameter);
  }
  return changed;
}

void update_pages(UpdatePass& pass, std::vector<int> pages, const UpdateInputs& inputs, Speculation& speculation,
                  const std::function<void(int page)>& updated) {
  c10::AutoGradMode no_grad(false);
  const ModelState& state = pass.state();
  pages = pass.begin(pages, inputs.from_caller == nullptr ? pages : std::vector<int>{});
  auto* disk = state.parameter_disk();
  if (disk != nullptr) {
    std::vector<int> read = pages;
    std::erase_if(read, [&](int page) { return use_of(state, page, inputs) == ParameterUse::kReplaced; });
    disk->begin_pass(read);
  }
  const auto fetch = [&](std::size_t i) {
    if (i < pages.size() && !speculation.is_ahead(pages[i])) pass.fetch(pages[i]);
  };
  JointUpdate joint(pass, inputs);
  // With peers a page is sent when it is updated, so the number of pages that wait for others' kernels is limited.
  const std::size_t most = state.communicator().size() == 1 ? SIZE_MAX : kSegmentsAtOnce;
  std::size_t reported = 0;
  const auto report = [&](std::size_t end) {
    joint.start();
    for (; reported < end; ++reported) updated(pages[reported]);
  };
  fetch(0);
  for (std::size_t i = 0; i < pages.size(); ++i) {
    fetch(i + 1);
    if (speculation.is_ahead(pages[i])) {
      speculation.commit(pages[i]);
    } else if (joint.takes(pages[i])) {
      joint.add(pages[i]);
      if (joint.segments() < most) continue;
    } else {
      update_page(pass, pages[i], inputs);
    }
    report(i + 1);
  }
  report(pages.size());
  pass.end();
  if (disk != nullptr) disk->end_pass();
}

}  // namespace zeropage::engine
