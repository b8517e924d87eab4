// Unplanned gradients: of pages that were not trained so far, second ones if whole frames only store first ones, those
// of backwards run by the program, and those for which no hook was called.
#include <c10/core/GradMode.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <utility>

#include "zeropage/base/checked.h"
#include "zeropage/base/error.h"
#include "zeropage/comm/c10d/c10d_buffers.h"
#include "zeropage/paging/device_wait.h"
#include "zeropage/paging/pager.h"
#include "zeropage/reduce/reducer.h"

namespace zeropage::reduce {

void Reducer::begin_forward() { hooks_.install_again(parameters_, may_train_); }

void Reducer::begin_program_backward(bool boundary, float factor) {
  boundary_ = boundary;
  if (is_running(backward_)) move_backward_to(BackwardState::kUnprocessed);  // it ended in an error
  factor_ = factor;
  move_backward_to(policy_.sharded ? BackwardState::kReducing : BackwardState::kAccumulating);
}

/// Takes every remaining gradient of a parameter that an optimizer has.
void Reducer::take_left_gradients() {
  bool first = !is_running(backward_);
  for (std::size_t i = 0; i < parameters_.size(); ++i) {
    if (!may_train_[i] || !parameters_[i].grad().defined()) continue;
    if (std::exchange(first, false)) factor_ = on_left_ ? on_left_() : 1.0f;
    const at::Tensor left = parameters_[i].grad();
    on_gradient(static_cast<int>(i));
    comm::note_use(left);  // only autograd says for its own who uses them
  }
}

/// Whether no frame can take this gradient before all ranks have agreed on one.
bool Reducer::must_defer(int parameter) const {
  const auto& page = layout_->pages()[layout_->page_of(parameter)];
  if (!page.trainable) return true;
  if (policy_.sharded || !policy_.adding || page.dtype == DType::kFloat32) return false;
  if (communicator_->size() == 1) return received_since_reset_[parameter];
  return in_frame_[parameter] || pages_[page.index].has_sum();
}

void Reducer::defer(int parameter, const at::Tensor& gradient) {
  c10::AutoGradMode no_grad(false);
  at::Tensor& sum = deferred_[parameter];
  deferred_order_.enter(device_);
  const at::Tensor scaled = gradient.detach().to(at::kFloat).mul(policy_.pre_scale * factor_);
  sum = sum.defined() ? sum.add_(scaled) : scaled;
  comm::note_use(sum);
  std::int64_t bytes = 0;
  for (const auto& each : deferred_) bytes += each.defined() ? static_cast<std::int64_t>(each.nbytes()) : 0;
  deferred_entry_ = LedgerEntry(ledger_, MemoryKind::kGradients, bytes);
}

/// `pages`: those with deferred gradients on any rank. They are reduced here, with zeros where this rank has none.
void Reducer::reduce_deferred(const std::vector<int>& pages) {
  if (pages.empty()) return;
  retire(0);
  std::vector<int> begins;
  for (const int page : pages) {
    if (!layout_->pages()[page].trainable) begins.push_back(page);
  }
  if (begins.size() < pages.size()) widen();
  if (!begins.empty()) begin_training(begins);
  deferred_order_.enter(device_);
  for (std::size_t i = 0; i < deferred_.size(); ++i) {
    const at::Tensor gradient = std::exchange(deferred_[i], at::Tensor());
    if (!gradient.defined()) continue;
    add_gradient(static_cast<int>(i), gradient, 1.0f);
    comm::note_use(gradient);
  }
  deferred_entry_ = LedgerEntry();
  for (const int page : pages) start_reduction(page);
  retire(0);
}

void Reducer::begin_training(const std::vector<int>& pages) {
  if (!on_begins_) throw UsageError("a parameter got a gradient that was not trained when the reducer was made");
  on_begins_(pages);
  for (const int page : pages) add_page(page);
}

void Reducer::add(const std::vector<at::Tensor>& parameters, const std::vector<bool>& offloaded) {
  reset();
  parameters_.insert(parameters_.end(), parameters.begin(), parameters.end());
  in_frame_.resize(parameters_.size());
  arrived_this_backward_.resize(parameters_.size());
  received_since_reset_.resize(parameters_.size());
  received_anywhere_.resize(parameters_.size());
  deferred_.resize(parameters_.size());
  kept_.resize(parameters_.size());
  for (std::size_t i = may_train_.size(); i < parameters_.size(); ++i) {
    may_train_.push_back(layout_->parameters()[i].group >= 0);
  }
  const std::size_t first = pages_.size();
  pages_.resize(layout_->pages().size());
  gathered_.resize(pages_.size());
  norms_.grow();
  policy_.offloaded = offloaded;
  frames_->grow();
  for (std::size_t page = first; page < pages_.size(); ++page) {
    if (layout_->pages()[page].trainable) add_page(static_cast<int>(page));
  }
  hooks_.install_early(parameters_, may_train_);
}

void Reducer::replace(int parameter, const at::Tensor& tensor) {
  parameters_[parameter] = tensor;
  hooks_.install_early(parameters_, may_train_);
}

/// Allocates memory for the gradients of a page that was not trained so far. Collective.
void Reducer::add_page(int page) {
  describe(page);
  order_.add(page);
  frames_->add(page);
  auto& state = pages_[page];
  if (!policy_.sharded) {
    state.frame = frames_->home(page);
    return;
  }
  shards_.add(page);
  if (policy_.may_keep(page)) return;  // they stay in autograd's tensors
  state.result = shards_.data(page);
  state.result_dtype = sum_dtype(page);
  if (is_sent_to_host(page)) {
    if (!send_stream_) {
      send_stream_ = c10::impl::VirtualGuardImpl(device_.type()).getStreamFromGlobalPool(device_);
    }
    for (auto& slot : slots_) slot.memory.reset();  // they are as large as the largest page
  }
  if (!reduces_into_shard(page)) reserve_scratch(layout_->pages()[page].shard_numel);
}

/// Collective: all ranks call it in the same backward, or none does.
void Reducer::widen() {
  if (policy_.sharded || !policy_.adding) return;
  c10::AutoGradMode no_grad(false);
  retire(0);
  for (const int page : order_.pages()) invalidate_sum(page);
  const DType narrow = policy_.accumulation_dtype;
  std::vector<std::byte*> frame_before;  // of each page of the order
  for (const int page : order_.pages()) frame_before.push_back(pages_[page].frame);
  const auto old_frames = std::move(frames_);
  policy_.accumulation_dtype = policy_.adding->accumulation_dtype;
  policy_.frame_dtype = policy_.adding->frame_dtype;
  policy_.adding.reset();
  frames_ = std::make_unique<GradientFrames>(layout_, order_.pages(), *communicator_, device_, ledger_, policy_);
  use_homes();
  for (std::size_t i = 0; i < order_.pages().size(); ++i) {
    widen_page(order_.pages()[i], frame_before[i], narrow, *old_frames);
  }
  // The old frames belong to the stream that allocated them, which may not be the current one. This happens only once.
  paging::wait_for_stream(device_, *communicator_, "the copy of gradients to frames of fp32");
}

/// Moves the contents of a page's old frames: its sum, and `frame` (null: none) with gradients. On 16-bit pages they
/// have the type `narrow`.
void Reducer::widen_page(int page, std::byte* frame, DType narrow, GradientFrames& old_frames) {
  auto& state = pages_[page];
  const auto& spec = layout_->pages()[page];
  const DType before = spec.dtype == DType::kFloat32 ? DType::kFloat32 : narrow;
  state.order.enter(device_);
  const auto move = [&](std::byte* from, DType from_type, std::byte* to, std::int64_t numel) {
    memory::flat_view(to, numel, scalar_type_of(frame_dtype(page)), device_)
        .copy_(memory::flat_view(from, numel, scalar_type_of(from_type), device_));
  };
  if (state.has_sum()) {
    std::byte* target = policy_.whole_result ? frames_->home(page) : own_shard(page);
    move(state.result, state.result_dtype, target, policy_.whole_result ? spec.padded_numel : spec.shard_numel);
    state.result = target;
    state.result_at_start = policy_.whole_result;
    state.result_dtype = frame_dtype(page);
  }
  if (frame == nullptr) {
    state.frame = nullptr;
  } else if (frame == old_frames.home(page)) {
    if (state.in_frame > 0) move(frame, before, frames_->home(page), spec.padded_numel);
  } else {
    state.frame = frames_->acquire(page);
    move(frame, before, state.frame, spec.padded_numel);
    old_frames.release(frame);
  }
}

}  // namespace zeropage::reduce
