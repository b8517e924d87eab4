#include "zeropage/engine/checkpoint.h"

#include <c10/core/GradMode.h>
#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <optional>

#include "zeropage/base/checked.h"
#include "zeropage/base/error.h"
#include "zeropage/checkpoint/save.h"
#include "zeropage/engine/background_save.h"
#include "zeropage/engine/checkpoint_tensors.h"
#include "zeropage/paging/device_wait.h"

namespace zeropage::engine {
namespace {

using checkpoint::LocalTensor;

checkpoint::ReadBytes reader_of(const void* data, c10::Device device) {
  auto* bytes = static_cast<std::byte*>(const_cast<void*>(data));
  if (device.is_cpu()) {
    return [bytes](std::int64_t begin, std::byte* out, std::int64_t count) {
      std::memcpy(out, bytes + begin, static_cast<std::size_t>(count));
    };
  }
  return [bytes, device](std::int64_t begin, std::byte* out, std::int64_t count) {
    const auto host = memory::flat_view(bytes + begin, count, at::kByte, device).cpu();
    std::memcpy(out, host.const_data_ptr(), static_cast<std::size_t>(count));
  };
}

constexpr std::int64_t kStateBytes = sizeof(float);

/// Reads state from its store. Pieces are requested page by page; the page of the last piece stays held, so each page
/// is read from its store once.
class StateCursor {
 public:
  explicit StateCursor(const ModelState& model) : model_(model) {}

  /// `count` bytes from `begin` on of a piece in fp32.
  void read(int page, int array, const StatePiece& piece, std::int64_t begin, std::byte* out, std::int64_t count) {
    turn_to(page);
    if (!held_) held_.emplace(model_.state_store(), page, Access::kRead);
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

/// Adds the part of a page in this rank's shard.
void add_page(const CheckpointedState& state, const layout::Page& page, const std::shared_ptr<StateCursor>& cursor,
              std::vector<LocalTensor>& out) {
  const int rank = state.communicator.rank();
  const auto& own = state.model.owned(page.index);
  const auto pieces = pieces_of(*state.model.layout(), page.index, own.begin, own.begin + own.numel);
  for (const auto& segment : state.model.layout()->shard_segments(page.index, rank)) {
    const auto& name = state.model.layout()->parameters()[segment.parameter].name;
    const auto shape = stored_shape(state.model.tensors()[segment.parameter]);
    const std::int64_t at = segment.page_offset - own.begin;
    // The piece that contains it: even if ranks have whole pages, each saves only its shard of them.
    const auto piece = *std::partition_point(pieces.begin(), pieces.end(),
                                             [&](const StatePiece& p) { return p.offset + p.numel <= at; });
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
    for (const auto& [kind, array] : state_arrays(state, page.index)) {
      add(kind, at::kFloat,
          [cursor, index = page.index, array = array, piece, at](std::int64_t begin, std::byte* to,
                                                                 std::int64_t bytes) {
            cursor->read(index, array, piece, (at - piece.offset) * kStateBytes + begin, to, bytes);
          });
    }
  }
}

/// Adds the part of a caller's state in this rank's shard; a value without dimensions belongs to the parameter's first
/// element.
void add_caller_state(const CheckpointedState& state, const CallerState& kept, std::vector<LocalTensor>& out) {
  const auto& layout = *state.model.layout();
  const auto& name = layout.parameters()[kept.parameter].name;
  const bool whole = kept.values.dim() == 0;
  const auto host = kept.values.detach().cpu().contiguous();
  const auto shape = whole ? std::vector<std::int64_t>{} : stored_shape(state.model.tensors()[kept.parameter]);
  const auto& page = layout.pages()[layout.page_of(kept.parameter)];
  const std::int64_t first = layout.offset_of(kept.parameter), shard = state.communicator.rank() * page.shard_numel;
  const std::int64_t begin = std::max(first, shard);
  const std::int64_t end = std::min(first + layout.parameters()[kept.parameter].numel, shard + page.shard_numel);
  for (const auto& segment : layout.segments(page.index, begin, std::max(begin, end))) {
    if (whole && segment.parameter_offset > 0) continue;
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
  // Every group has the same state; the first one saves it.
  const bool saves = state.communicator.group() == 0;
  for (const auto& page : layout.pages()) {
    if (saves && (page.trainable || !options.exclude_frozen)) add_page(state, page, cursor, out);
  }
  for (std::size_t i = 0; i < layout.parameters().size() && state.communicator.job().rank() == 0; ++i) {
    const auto& parameter = layout.parameters()[i];
    if (parameter.numel > 0 || (!parameter.trainable && options.exclude_frozen)) continue;
    const auto& tensor = state.model.tensors()[i];
    out.push_back({{"value/" + parameter.name, type_name(tensor.scalar_type(), parameter.name), stored_shape(tensor)},
                   0,
                   0,
                   reader_of(nullptr, c10::kCPU)});
  }
  for (const auto& kept : options.caller_state) {
    if (saves) add_caller_state(state, kept, out);
  }
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

}  // namespace

std::string save_state(const CheckpointedState& state, const checkpoint::TrainingState& training,
                       const SaveOptions& options, BackgroundSave* background) {
  c10::AutoGradMode no_grad(false);
  checkpoint::check_tag(options.tag);
  state.model.adopt_replaced_data();
  state.communicator.job().barrier(comm::Tag{"saving a checkpoint", 0});
  state.model.take_user_writes();
  paging::wait_for_stream(state.model.device(), state.communicator, "the copy of state for a checkpoint");
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
  request.keep_last = state.config.zeropage.keep_last;
  request.run = state.run;
  if (background != nullptr) {
    background->start(std::move(request));
    return fmt::format("{}/{}", options.folder, options.tag);
  }
  request.progress = options.progress;
  return checkpoint::save(checkpoint::system_files(), state.communicator.job(), std::move(request));
}

}  // namespace zeropage::engine
