#include "zeropage/engine/checkpoint.h"

#include <ATen/ops/empty.h>
#include <c10/core/GradMode.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <functional>
#include <memory>
#include <numeric>
#include <optional>
#include <set>

#include "zeropage/base/checked.h"
#include "zeropage/base/error.h"
#include "zeropage/checkpoint/exchange.h"
#include "zeropage/checkpoint/save.h"
#include "zeropage/engine/background_save.h"

namespace zeropage::engine {
namespace {

using checkpoint::LocalTensor;
using checkpoint::TensorInfo;
using checkpoint::TensorRecord;

constexpr std::array<std::pair<const char*, at::ScalarType>, 10> kTypes = {{{"F32", at::kFloat},
                                                                            {"BF16", at::kBFloat16},
                                                                            {"F16", at::kHalf},
                                                                            {"F64", at::kDouble},
                                                                            {"I64", at::kLong},
                                                                            {"I32", at::kInt},
                                                                            {"I16", at::kShort},
                                                                            {"I8", at::kChar},
                                                                            {"U8", at::kByte},
                                                                            {"BOOL", at::kBool}}};

at::ScalarType type_of(const TensorInfo& info) {
  return std::find_if(kTypes.begin(), kTypes.end(), [&](const auto& row) { return info.dtype == row.first; })->second;
}

/// The dimensions as they lie in memory, for a parameter that is transposed or channels-last; empty for others.
std::vector<std::int64_t> memory_order(const at::Tensor& tensor) {
  // What is not dense is laid out contiguously.
  if (tensor.is_contiguous() || !tensor.is_non_overlapping_and_dense()) return {};
  std::vector<std::int64_t> order(static_cast<std::size_t>(tensor.dim()));
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](auto a, auto b) { return tensor.stride(a) > tensor.stride(b); });
  return order;
}

/// The extents in memory order.
std::vector<std::int64_t> stored_shape(const at::Tensor& tensor) {
  std::vector<std::int64_t> shape;
  for (const auto dim : memory_order(tensor)) shape.push_back(tensor.size(dim));
  return shape.empty() ? tensor.sizes().vec() : shape;
}

bool has_masters(const CheckpointedState& state) { return state.model.has_masters(); }

/// The arrays of trained pages by the names they have in checkpoints, where all are fp32: first the master, where there is one.
std::vector<std::pair<std::string, int>> state_arrays(const CheckpointedState& state) {
  std::vector<std::pair<std::string, int>> arrays;
  if (has_masters(state)) arrays.emplace_back("master", StateArrays::kMaster);
  const auto names = config::optimizer_state_names(state.config.optimizer.kind);
  for (int i = 0; i < config::optimizer_state_count(state.config.optimizer); ++i) arrays.emplace_back(names[i], i);
  return arrays;
}

at::ScalarType page_type(const CheckpointedState& state, const layout::Page& page, int parameter) {
  switch (page.dtype) {
    case DType::kFloat32: return at::kFloat;
    case DType::kBFloat16: return at::kBFloat16;
    case DType::kFloat16: return at::kHalf;
    default: return state.model.tensors()[parameter].scalar_type();
  }
}

checkpoint::ReadBytes reader_of(const void* data, c10::Device device) {
  auto* bytes = static_cast<std::byte*>(const_cast<void*>(data));
  if (device.is_cpu()) {
    return [bytes](std::int64_t begin, std::byte* out, std::int64_t count) {
      std::memcpy(out, bytes + begin, static_cast<std::size_t>(count));
    };
  }
  return [bytes, device](std::int64_t begin, std::byte* out, std::int64_t count) {
    const auto host = paging::flat_view(bytes + begin, count, at::kByte, device).cpu();
    std::memcpy(out, host.const_data_ptr(), static_cast<std::size_t>(count));
  };
}

constexpr std::int64_t kStateBytes = sizeof(float);

/// Reads state from its home. Pieces are asked for page by page; the page of the last one stays held, so that each page comes from
/// its home once.
class StateCursor {
 public:
  explicit StateCursor(const ModelState& model) : model_(model) {}

  /// `count` bytes from `begin` on of a piece in fp32.
  void read(int page, int array, const StatePiece& piece, std::int64_t begin, std::byte* out, std::int64_t count) {
    turn_to(page);
    if (!held_) held_.emplace(model_.home(), page, Access::kRead);
    const auto& arrays = held_->arrays();
    if (arrays.is_wide(array)) {
      reader_of(arrays.array(array) + piece.offset, held_->device())(begin, out, count);
      return;
    }
    const std::int64_t first = begin / kStateBytes;
    std::vector<float> wide(static_cast<std::size_t>(ceil_div(begin + count, kStateBytes) - first));
    held_->read(array, piece, first, wide.data(), static_cast<std::int64_t>(wide.size()));
    std::memcpy(out, reinterpret_cast<const std::byte*>(wide.data()) + (begin - first * kStateBytes),
                static_cast<std::size_t>(count));
  }

  void read_parameter(int page, std::int64_t at_bytes, std::int64_t begin, std::byte* out, std::int64_t count) {
    turn_to(page);
    if (!parameter_) parameter_.emplace(model_, page, Access::kRead);
    reader_of(parameter_->data() + at_bytes, model_.owned(page).device)(begin, out, count);
  }

 private:
  void turn_to(int page) {
    if (page == page_) return;
    held_.reset();
    parameter_.reset();
    page_ = page;
  }

  const ModelState& model_;
  std::optional<HeldState> held_;
  std::optional<HeldParameter> parameter_;
  int page_ = -1;
};

/// What lies in this rank's shard of a page.
void add_page(const CheckpointedState& state, const layout::Page& page, const std::shared_ptr<StateCursor>& cursor,
              std::vector<LocalTensor>& out) {
  const int rank = state.communicator.rank();
  const auto& own = state.model.owned(page.index);
  const auto pieces = pieces_of(*state.model.layout(), page.index, own.begin, own.begin + own.numel);
  for (const auto& segment : state.model.layout()->shard_segments(page.index, rank)) {
    const auto& name = state.model.layout()->parameters()[segment.parameter].name;
    const auto shape = stored_shape(state.model.tensors()[segment.parameter]);
    const std::int64_t at = segment.page_offset - own.begin;
    // The piece that it is a part of: where a rank has whole pages, each saves its shard of them.
    const auto piece =
        *std::find_if(pieces.begin(), pieces.end(), [&](const StatePiece& p) { return at < p.offset + p.numel; });
    const auto add = [&](const std::string& kind, at::ScalarType type, checkpoint::ReadBytes read) {
      out.push_back({{kind + "/" + name, type_name(type, name), shape},
                     segment.parameter_offset,
                     segment.numel,
                     std::move(read)});
    };
    add("value", page_type(state, page, segment.parameter),
        [cursor, index = page.index, at_bytes = at * page.element_bytes](std::int64_t begin, std::byte* to,
                                                                         std::int64_t bytes) {
          cursor->read_parameter(index, at_bytes, begin, to, bytes);
        });
    if (!page.trainable) continue;
    for (const auto& [kind, array] : state_arrays(state)) {
      add(kind, at::kFloat,
          [cursor, index = page.index, array = array, piece, at](std::int64_t begin, std::byte* to,
                                                                 std::int64_t bytes) {
            cursor->read(index, array, piece, (at - piece.offset) * kStateBytes + begin, to, bytes);
          });
    }
  }
}

/// What of a caller's state lies in this rank's shard; what has no dimensions goes with the parameter's first element.
void add_caller_state(const CheckpointedState& state, const CallerState& kept, std::vector<LocalTensor>& out) {
  const auto& layout = *state.model.layout();
  const auto& name = layout.parameters()[kept.parameter].name;
  const bool whole = kept.values.dim() == 0;
  const auto host = kept.values.detach().cpu().contiguous();
  const auto shape = whole ? std::vector<std::int64_t>{} : stored_shape(state.model.tensors()[kept.parameter]);
  for (const auto& segment : layout.shard_segments(layout.page_of(kept.parameter), state.communicator.rank())) {
    if (segment.parameter != kept.parameter || (whole && segment.parameter_offset > 0)) continue;
    const std::int64_t skipped = whole ? 0 : segment.parameter_offset - kept.offset;
    const auto read = reader_of(
        static_cast<const std::byte*>(host.const_data_ptr()) + skipped * static_cast<std::int64_t>(host.itemsize()),
        c10::kCPU);
    out.push_back({{kept.kind + "/" + name, type_name(host.scalar_type(), name), shape},
                   whole ? 0 : segment.parameter_offset,
                   whole ? 1 : segment.numel,
                   [host, read](std::int64_t begin, std::byte* to, std::int64_t bytes) { read(begin, to, bytes); }});
  }
}

std::vector<LocalTensor> local_tensors(const CheckpointedState& state, const SaveOptions& options) {
  std::vector<LocalTensor> out;
  const auto& layout = *state.model.layout();
  const auto cursor = std::make_shared<StateCursor>(state.model);
  for (const auto& page : layout.pages()) {
    if (page.trainable || !options.exclude_frozen) add_page(state, page, cursor, out);
  }
  for (std::size_t i = 0; i < layout.parameters().size() && state.communicator.rank() == 0; ++i) {
    const auto& parameter = layout.parameters()[i];
    if (parameter.numel > 0 || (!parameter.trainable && options.exclude_frozen)) continue;
    const auto& tensor = state.model.tensors()[i];
    out.push_back({{"value/" + parameter.name, type_name(tensor.scalar_type(), parameter.name), stored_shape(tensor)},
                   0,
                   0,
                   reader_of(nullptr, c10::kCPU)});
  }
  for (const auto& kept : options.caller_state) add_caller_state(state, kept, out);
  for (const auto& [name, tensor] : options.host_tensors) {
    const at::Tensor host = tensor.detach().cpu().contiguous();
    auto read = reader_of(host.const_data_ptr(), c10::kCPU);
    out.push_back({{name, type_name(host.scalar_type(), name), host.sizes().vec()},
                   0,
                   host.numel(),
                   [host, read](std::int64_t begin, std::byte* to, std::int64_t bytes) { read(begin, to, bytes); }});
  }
  return out;
}

/// One range of a tensor of the checkpoint and where it goes.
struct Transfer {
  const TensorRecord* source;
  std::int64_t offset;
  std::int64_t numel;
  std::function<void(const at::Tensor& values)> store;  ///< flat
};

struct Plan {
  std::vector<Transfer> transfers;
  std::vector<std::pair<int, std::int64_t>> updates;  ///< parameter, optimizer steps
  LoadReport report;
  std::vector<std::string> problems;
};

/// Compares the checkpoint with the model and lists what this rank has to read.
class Planner {
 public:
  Planner(const CheckpointedState& state, const checkpoint::Checkpoint& step, const LoadOptions& options)
      : state_(state), step_(step), options_(options) {
    for (const auto& record : step.manifest().parameters) {
      records_[record.name] = &record;
      for (const auto& alias : record.aliases) records_.emplace(alias, &record);
    }
  }

  Plan plan() {
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
      } else if (parameters[i].trainable || !step_.manifest().frozen_excluded) {
        plan_.report.missing.push_back(parameters[i].name);
      }
    }
    for (const auto& record : step_.manifest().parameters) {
      if (!used.contains(&record) && step_.find("value/" + record.name)) plan_.report.unexpected.push_back(record.name);
    }
    if (options_.strict) {
      for (const auto& name : plan_.report.missing) problem("'{}' is in the model, not in the checkpoint", name);
      for (const auto& name : plan_.report.unexpected) problem("'{}' is in the checkpoint, not in the model", name);
    }
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
    for (const std::string kind : {"value", "master", "exp_avg", "exp_avg_sq", "sum", "momentum_buffer"}) {
      const auto* tensor = step_.find(kind + "/" + record.name);
      if (tensor == nullptr || tensor->info.shape == expected) continue;
      problem("'{}' has the shape [{}] in the model, [{}] in the checkpoint", record.name, fmt::join(expected, ", "),
              fmt::join(tensor->info.shape, ", "));
      return;
    }
  }

  /// `offset_bytes`: from the start of what is kept of the page.
  void add_value(const TensorRecord* source, const layout::Segment& segment, std::int64_t offset_bytes,
                 at::ScalarType type) {
    const int page = state_.model.layout()->page_of(segment.parameter);
    const auto store = [&model = state_.model, page, offset_bytes, type](const at::Tensor& values) {
      const HeldParameter held(model, page, Access::kWrite);
      std::byte* kept = model.pager().paged(page) ? held.data() : model.whole_page(page);
      paging::flat_view(kept + offset_bytes, values.numel(), type, model.owned(page).device).copy_(values);
    };
    plan_.transfers.push_back({source, segment.parameter_offset, segment.numel, store});
  }

  void add_state(const TensorRecord* source, int page, const StatePiece& piece, int array) {
    const auto store = [&home = state_.model.home(), page, piece, array](const at::Tensor& values) {
      const HeldState held(home, page, Access::kWrite);
      if (!held.arrays().is_wide(array)) {
        held.write(array, piece, values.to(at::kFloat).const_data_ptr<float>(), /*key=*/0);
        return;
      }
      auto* target = held.arrays().array(array) + piece.offset;
      paging::flat_view(target, values.numel(), at::kFloat, held.device()).copy_(values);
    };
    plan_.transfers.push_back({source, piece.parameter_offset, piece.numel, store});
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
        plan_.updates.emplace_back(place.parameter, found[place.parameter]->updates);
      }
    }
  }

  void add_optimizer(int page, const StatePiece& piece, const checkpoint::ParameterRecord& record) {
    for (const auto& [kind, array] : state_arrays(state_)) {
      if (array == StateArrays::kMaster) {
        add_state(precise(record.name), page, piece, array);
        continue;
      }
      if (!with_optimizer()) return;
      const auto* moment = step_.find(kind + "/" + record.name);
      if (moment != nullptr) {
        add_state(moment, page, piece, array);
      } else if (options_.strict) {
        problem("'{}' has no {} in the checkpoint; pass load_optimizer_states=False to start without", record.name,
                kind);
      }
    }
  }

  bool with_optimizer() const { return options_.optimizer_states && !options_.module_only; }

  /// The fp32 values where there are any.
  const TensorRecord* precise(const std::string& parameter) const {
    const auto* master = step_.find("master/" + parameter);
    return master != nullptr ? master : step_.find("value/" + parameter);
  }

  const CheckpointedState& state_;
  const checkpoint::Checkpoint& step_;
  const LoadOptions& options_;
  std::map<std::string, const checkpoint::ParameterRecord*> records_;
  Plan plan_;
};

/// Reads what a transfer needs into memory of its own.
at::Tensor fetch(checkpoint::Checkpoint& step, const TensorRecord& source, std::int64_t offset, std::int64_t numel) {
  auto values = at::empty({numel}, at::TensorOptions().dtype(type_of(source.info)));
  step.read(source, offset, numel, static_cast<std::byte*>(values.mutable_data_ptr()));
  return values;
}

const TensorRecord& record_of(const checkpoint::Checkpoint& step, const std::string& name) {
  const auto* record = step.find(name);
  if (record == nullptr) throw CheckpointError(fmt::format("{}: there is no tensor '{}'", step.path(), name));
  return *record;
}

void apply(const CheckpointedState& state, checkpoint::Checkpoint& step, const Plan& plan) {
  for (const auto& transfer : plan.transfers) {
    transfer.store(fetch(step, *transfer.source, transfer.offset, transfer.numel));
  }
  for (const auto& [parameter, updates] : plan.updates) state.updates[static_cast<std::size_t>(parameter)] = updates;
}

}  // namespace

std::string type_name(at::ScalarType type, const std::string& tensor) {
  for (const auto& [name, known] : kTypes) {
    if (known == type) return name;
  }
  throw CheckpointError(
      fmt::format("tensor '{}' has the type {}, which checkpoints do not hold", tensor, c10::toString(type)));
}

std::string save_state(const CheckpointedState& state, const checkpoint::TrainingState& training,
                       const SaveOptions& options, BackgroundSave* background) {
  c10::AutoGradMode no_grad(false);
  checkpoint::check_tag(options.tag);
  state.model.absorb_replaced();
  state.communicator.barrier(comm::Tag{"saving a checkpoint", 0});
  state.model.take_user_writes();
  checkpoint::SaveRequest request;
  request.folder = options.folder;
  auto& manifest = request.manifest;
  manifest.library_version = ZEROPAGE_VERSION;
  manifest.tag = options.tag;
  manifest.latest = options.latest;
  manifest.stage = state.config.zero.stage;
  manifest.frozen_excluded = options.exclude_frozen;
  manifest.training = training;
  manifest.config_json = state.config.effective_json;
  manifest.host_json = options.host_json;
  const auto& parameters = state.model.layout()->parameters();
  for (std::size_t i = 0; i < parameters.size(); ++i) {
    if (!parameters[i].trainable && options.exclude_frozen) continue;
    const auto aliases = options.aliases.find(parameters[i].name);
    manifest.parameters.push_back({parameters[i].name,
                                   aliases == options.aliases.end() ? std::vector<std::string>{} : aliases->second,
                                   parameters[i].trainable, state.updates[i], memory_order(state.model.tensors()[i])});
  }
  request.tensors = local_tensors(state, options);
  request.keep_last = state.config.own.keep_last;
  if (background != nullptr) {
    background->start(std::move(request));
    return fmt::format("{}/{}", options.folder, options.tag);
  }
  request.progress = options.progress;
  return checkpoint::save(checkpoint::system_files(), state.communicator, std::move(request));
}

LoadReport load_state(const CheckpointedState& state, checkpoint::Checkpoint& step, const LoadOptions& options) {
  c10::AutoGradMode no_grad(false);
  auto& pager = state.model.pager();
  state.model.absorb_replaced();
  pager.end_pass();
  Plan plan;
  checkpoint::together(state.communicator, fmt::format("{} was not loaded, and the model is as it was", step.path()),
                       [&] {
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
  const auto mixed =
      fmt::format("{} changed while it was loaded: the model is not to be used, load again", step.path());
  checkpoint::together(state.communicator, mixed, [&] {
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
