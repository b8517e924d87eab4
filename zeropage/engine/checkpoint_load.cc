#include <ATen/ops/empty.h>
#include <c10/core/GradMode.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <map>
#include <set>
#include <utility>

#include "zeropage/base/error.h"
#include "zeropage/checkpoint/exchange.h"
#include "zeropage/checkpoint/optimizer_state.h"
#include "zeropage/engine/checkpoint.h"
#include "zeropage/engine/checkpoint_tensors.h"
#include "zeropage/engine/state_pieces.h"
#include "zeropage/paging/device_wait.h"

namespace zeropage::engine {
namespace {

using checkpoint::TensorRecord;

/// One range of a checkpoint's tensor and its destination: the kept part of a page's parameters, or an array of its
/// state.
struct LoadedRange {
  const TensorRecord* source;
  std::int64_t offset;
  std::int64_t numel;
  int page;
  bool is_state = false;
  std::int64_t offset_bytes = 0;                    ///< parameters: from the start of what is kept
  at::ScalarType type = at::ScalarType::Undefined;  ///< parameters
  StatePiece piece = {};                            ///< state, as the next one
  int array = 0;
};

struct LoadPlan {
  std::vector<LoadedRange> transfers;
  std::vector<std::pair<int, std::int64_t>> updates;  ///< parameter, optimizer steps
  std::vector<int> without_state;                     ///< trained parameters whose moments start at zero
  LoadReport report;
  std::vector<std::string> problems;
};

/// Reads a range of a tensor into new memory.
at::Tensor fetch(checkpoint::Checkpoint& step, const TensorRecord& source, std::int64_t offset, std::int64_t numel) {
  auto values = at::empty({numel}, at::TensorOptions().dtype(type_of(source.info)));
  step.read(source, offset, numel, static_cast<std::byte*>(values.mutable_data_ptr()));
  return values;
}

/// Compares the checkpoint with the model and lists the ranges that this rank reads.
class Planner {
 public:
  Planner(const CheckpointedState& state, checkpoint::Checkpoint& step, const LoadOptions& options)
      : state_(state), step_(step), options_(options), saved_states_(step) {
    for (const auto& record : step.manifest().parameters) {
      records_[record.name] = &record;
      for (const auto& alias : record.aliases) records_.emplace(alias, &record);
    }
  }

  LoadPlan plan() {
    if (!options_.parameters) return {};
    const auto& parameters = state_.model.layout()->parameters();
    std::set<const checkpoint::ParameterRecord*> used;
    std::vector<const checkpoint::ParameterRecord*> found(parameters.size(), nullptr);
    for (std::size_t i = 0; i < parameters.size(); ++i) {
      const auto record = records_.find(parameters[i].name);
      if (record != records_.end() && step_.find("value/" + record->second->name) != nullptr) {
        found[i] = record->second;
        used.insert(record->second);
        check_shape(static_cast<int>(i), *record->second);
      } else {
        plan_.report.missing.push_back(parameters[i].name);
        // Left out on purpose: listed, but not an error.
        const bool excluded = !parameters[i].trainable && step_.manifest().frozen_excluded;
        if (options_.strict && !excluded) {
          problem("'{}' is in the model, not in the checkpoint; pass load_module_strict=False to keep it unchanged",
                  parameters[i].name);
        }
      }
    }
    for (const auto& record : step_.manifest().parameters) {
      if (!used.contains(&record) && step_.find("value/" + record.name)) plan_.report.unexpected.push_back(record.name);
    }
    if (options_.strict) {
      for (const auto& name : plan_.report.unexpected) problem("'{}' is in the checkpoint, not in the model", name);
    }
    if (with_optimizer()) check_states(found);
    if (!plan_.problems.empty()) return std::move(plan_);
    for (const auto& page : state_.model.layout()->pages()) add_page(page, found);
    return std::move(plan_);
  }

 private:
  template <typename... Arguments>
  void problem(fmt::format_string<Arguments...> format, Arguments&&... arguments) {
    plan_.problems.push_back(fmt::format(format, std::forward<Arguments>(arguments)...));
  }

  void check_shape(int parameter, const checkpoint::ParameterRecord& record) {
    const auto order = memory_order(state_.model.tensors()[parameter]);
    if (order != record.order) {
      problem("'{}' has its dimensions in the order [{}] in memory, in the checkpoint [{}] (empty: row-major)",
              record.name, fmt::join(order, ", "), fmt::join(record.order, ", "));
      return;
    }
    const auto expected = stored_shape(state_.model.tensors()[parameter]);
    std::vector<const TensorRecord*> stored = {step_.find("value/" + record.name), step_.find("master/" + record.name)};
    for (const auto& kind : state_names()) stored.push_back(saved_states_.for_engine(record, kind));
    for (const auto* tensor : stored) {
      if (tensor == nullptr || tensor->info.shape == expected) continue;
      problem("'{}' has the shape [{}] in the model, [{}] in the checkpoint", record.name, fmt::join(expected, ", "),
              fmt::join(tensor->info.shape, ", "));
      return;
    }
  }

  /// The names of the state that the engine's update keeps for a parameter.
  std::vector<std::string> state_names() const {
    const auto names = config::optimizer_state_names(state_.config.optimizer.kind);
    return {names.begin(), names.begin() + config::optimizer_state_count(state_.config.optimizer)};
  }

  /// Reports state of an optimizer object with which the engine's own update cannot continue.
  void check_states(const std::vector<const checkpoint::ParameterRecord*>& found) {
    if (state_.config.optimizer.kind == config::OptimizerKind::kClient) return;
    const auto names = state_names();
    for (const auto* record : found) {
      if (record == nullptr) continue;
      const auto state = saved_states_.unknown_to_engine(*record, names);
      if (!state) continue;
      problem(
          "the state of '{}' was saved by an optimizer object with more state than the engine's own update has: {}; "
          "give "
          "the engine the same object, or load without optimizer states (load_optimizer_states=False)",
          record->name, *state);
      return;
    }
  }

  std::int64_t updates_of(const checkpoint::ParameterRecord& record) {
    return saved_states_.updates(
        record, [&](const TensorRecord& count) { return fetch(step_, count, 0, 1).to(at::kDouble).item().toLong(); });
  }

  /// `offset_bytes`: from the start of the kept part of the page.
  void add_value(const TensorRecord* source, const layout::Segment& segment, std::int64_t offset_bytes,
                 at::ScalarType type) {
    const int page = state_.model.layout()->page_of(segment.parameter);
    plan_.transfers.push_back(
        {source, segment.parameter_offset, segment.numel, page, /*is_state=*/false, offset_bytes, type});
  }

  void add_state(const TensorRecord* source, int page, const StatePiece& piece, int array) {
    plan_.transfers.push_back(
        {source, piece.parameter_offset, piece.numel, page, /*is_state=*/true, 0, at::kFloat, piece, array});
  }

  void add_page(const layout::Page& page, const std::vector<const checkpoint::ParameterRecord*>& found) {
    const auto& own = state_.model.owned(page.index);
    const auto& layout = *state_.model.layout();
    const bool paged = state_.model.pager().paged(page.index);
    const std::int64_t kept_begin = paged ? own.begin : 0;
    const std::int64_t kept_end = paged ? own.begin + own.numel : page.padded_numel;
    for (const auto& segment : layout.segments(page.index, kept_begin, kept_end)) {
      if (found[segment.parameter] == nullptr) continue;
      const auto type = page_type(state_, page, segment.parameter);
      const auto* value = step_.find("value/" + found[segment.parameter]->name);
      add_value(type_of(value->info) == type ? value : precise(found[segment.parameter]->name), segment,
                (segment.page_offset - kept_begin) * page.element_bytes, type);
    }
    for (const auto& piece : pieces_of(layout, page.index, own.begin, own.begin + own.numel)) {
      if (page.trainable && found[piece.parameter] != nullptr)
        add_optimizer(page.index, piece, *found[piece.parameter]);
    }
    for (const auto& place : page.placements) {
      if (page.trainable && found[place.parameter] != nullptr && with_optimizer()) {
        plan_.updates.emplace_back(place.parameter, updates_of(*found[place.parameter]));
      }
    }
  }

  void add_optimizer(int page, const StatePiece& piece, const checkpoint::ParameterRecord& record) {
    for (const auto& [kind, array] : state_arrays(state_, page)) {
      if (array == StateArrays::kMaster) {
        add_state(precise(record.name), page, piece, array);
        continue;
      }
      if (!with_optimizer()) return;
      const auto* moment = saved_states_.for_engine(record, kind);
      if (moment != nullptr) {
        add_state(moment, page, piece, array);
      } else if (saved_states_.may_begin(record)) {
        plan_.without_state.push_back(piece.parameter);
        return;
      } else if (options_.strict && !state_.model.layout()->began_later(page)) {
        problem(
            "'{}' has no {} in the checkpoint, in which it was not trained; pass load_module_strict=False to start it "
            "without, and load the state of the others",
            record.name, kind);
      }
    }
  }

  bool with_optimizer() const { return options_.optimizer_states && !options_.module_only; }

  /// The fp32 values, if there are any.
  const TensorRecord* precise(const std::string& parameter) const {
    const auto* master = step_.find("master/" + parameter);
    return master != nullptr ? master : step_.find("value/" + parameter);
  }

  const CheckpointedState& state_;
  checkpoint::Checkpoint& step_;
  const LoadOptions& options_;
  const checkpoint::SavedOptimizerStates saved_states_;
  std::map<std::string, const checkpoint::ParameterRecord*> records_;
  LoadPlan plan_;
};

const TensorRecord& record_of(const checkpoint::Checkpoint& step, const std::string& name) {
  const auto* record = step.find(name);
  if (record == nullptr) throw CheckpointError(fmt::format("{}: there is no tensor '{}'", step.path(), name));
  return *record;
}

void store_parameters(const CheckpointedState& state, const HeldParameter& held, const LoadedRange& transfer,
                      const at::Tensor& values) {
  const int page = transfer.page;
  std::byte* kept = state.model.pager().paged(page) ? held.data() : state.model.whole_page(page);
  memory::flat_view(kept + transfer.offset_bytes, values.numel(), transfer.type, state.model.owned(page).device)
      .copy_(values);
}

void store_state(const HeldState& held, const LoadedRange& transfer, const at::Tensor& values) {
  store_piece(held, transfer.array, transfer.piece, values);
}

/// Transfers are sorted by page, so each page is read from its store once and written back once.
void apply(const CheckpointedState& state, checkpoint::Checkpoint& step, const LoadPlan& plan) {
  const auto values_of = [&](const LoadedRange& t) { return fetch(step, *t.source, t.offset, t.numel); };
  for (auto next = plan.transfers.begin(); next != plan.transfers.end();) {
    const auto& first = *next;
    const auto end = std::find_if(next, plan.transfers.end(), [&](const LoadedRange& t) {
      return t.page != first.page || t.is_state != first.is_state;
    });
    if (first.is_state) {
      const HeldState held(state.model.state_store(), first.page, Access::kWrite);
      for (; next != end; ++next) store_state(held, *next, values_of(*next));
    } else {
      const HeldParameter held(state.model, first.page, Access::kWrite);
      for (; next != end; ++next) store_parameters(state, held, *next, values_of(*next));
    }
  }
  for (const int parameter : plan.without_state) state.model.forget_moments(parameter);
  for (const auto& [parameter, updates] : plan.updates) state.updates[static_cast<std::size_t>(parameter)] = updates;
}

}  // namespace

LoadReport load_state(const CheckpointedState& state, checkpoint::Checkpoint& step, const LoadOptions& options) {
  c10::AutoGradMode no_grad(false);
  auto& pager = state.model.pager();
  state.model.adopt_replaced_data();
  pager.end_pass();
  LoadPlan plan;
  const paging::UpdateScope scope(pager);  // before any rank changes its shards
  checkpoint::run_on_all_ranks(state.communicator.job(),
                               fmt::format("{} was not loaded, and the model is unchanged", step.path()), [&] {
                                 plan = Planner(state, step, options).plan();
                                 if (!options.problem.empty()) plan.problems.push_back(options.problem);
                                 if (!plan.problems.empty())
                                   throw CheckpointError(fmt::format("{}", fmt::join(plan.problems, "\n    ")));
                                 for (const auto& transfer : plan.transfers) {
                                   fetch(step, *transfer.source, transfer.offset, transfer.numel);
                                 }
                                 return std::string();
                               });
  state.model.take_user_writes();
  std::vector<int> paged;
  for (const auto& page : state.model.layout()->pages()) {
    if (pager.paged(page.index)) paged.push_back(page.index);
  }
  pager.drop_stale(paged);
  paging::wait_for_stream(state.model.device(), state.communicator, "the copy of state from a checkpoint");
  const auto mixed = fmt::format("{} changed while it was loaded: the model must not be used, load again", step.path());
  checkpoint::run_on_all_ranks(state.communicator.job(), mixed, [&] {
    apply(state, step, plan);
    return std::string();
  });
  for (const int page : paged) pager.publish(page);
  pager.refresh_pinned();
  for (const auto& tensor : state.model.tensors()) tensor.unsafeGetTensorImpl()->bump_version();
  return std::move(plan.report);
}

at::Tensor read_tensor(checkpoint::Checkpoint& step, const std::string& name) {
  const auto& record = record_of(step, name);
  return fetch(step, record, 0, checkpoint::shape_numel(record.info.shape, step.path())).view(record.info.shape);
}

at::Tensor read_range(checkpoint::Checkpoint& step, const std::string& name, std::int64_t offset, std::int64_t numel) {
  const auto& record = record_of(step, name);
  const auto total = checkpoint::shape_numel(record.info.shape, step.path());
  if (offset < 0 || numel < 0 || offset > total || numel > total - offset) {
    throw CheckpointError(
        fmt::format("{}: '{}' has {} elements, and {} from {} on are needed", step.path(), name, total, numel, offset));
  }
  return fetch(step, record, offset, numel);
}

}  // namespace zeropage::engine
