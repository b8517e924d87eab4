// Gradients that nobody has planned for: of pages that were not trained so far, second ones where whole frames only
// store first ones, those of backwards that did not go through the engine, and those that no hook saw.
#include <c10/core/GradMode.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <utility>

#include "zeropage/base/checked.h"
#include "zeropage/base/error.h"
#include "zeropage/paging/device_wait.h"
#include "zeropage/paging/pager.h"
#include "zeropage/reduce/reducer.h"

namespace zeropage::reduce {

void Reducer::begin_forward() {
  if (std::exchange(hooked_early_, false)) hooks_.remove();
  hooks_.install(parameters_, may_train_);
}

void Reducer::hook_early() {
  hooks_.install(parameters_, may_train_);
  hooked_early_ = !device_.is_cpu();
}

void Reducer::begin_program_backward(bool boundary, float factor) {
  boundary_ = boundary;
  anywhere_known_ = false;
  inside_ = true;
  factor_ = factor;
}

/// Every left gradient of a parameter that an optimizer has.
void Reducer::take_left_gradients() {
  bool first = !inside_;
  for (std::size_t i = 0; i < parameters_.size(); ++i) {
    if (!may_train_[i] || !parameters_[i].grad().defined()) continue;
    if (std::exchange(first, false)) factor_ = on_left_ ? on_left_() : 1.0f;
    on_gradient(static_cast<int>(i));
  }
}

bool Reducer::has_no_place(int parameter) const {
  const auto& page = layout_->pages()[layout_->page_of(parameter)];
  if (!page.trainable) return true;
  if (policy_.sharded || widened_ || !policy_.adding || page.dtype == DType::kFloat32) return false;
  if (communicator_->size() == 1) return received_since_reset_[parameter];
  return in_frame_[parameter] || pages_[page.index].filled;
}

void Reducer::wait_for_place(int parameter, const at::Tensor& gradient) {
  c10::AutoGradMode no_grad(false);
  at::Tensor& sum = waiting_[parameter];
  const at::Tensor scaled = gradient.detach().to(at::kFloat).mul(policy_.pre_scale * factor_);
  sum = sum.defined() ? sum.add(scaled) : scaled;
  std::int64_t bytes = 0;
  for (const auto& waits : waiting_) bytes += waits.defined() ? static_cast<std::int64_t>(waits.nbytes()) : 0;
  waiting_entry_ = LedgerEntry(ledger_, MemoryKind::kGradients, bytes);
}

/// `pages`: those with waiting gradients on any rank. They are reduced here, with zeros where this rank has none.
void Reducer::place_waiting(const std::vector<int>& pages) {
  if (pages.empty()) return;
  retire(0);
  std::vector<int> begins;
  for (const int page : pages) {
    if (!layout_->pages()[page].trainable) begins.push_back(page);
  }
  if (begins.size() < pages.size()) widen();
  if (!begins.empty()) begin_training(begins);
  for (std::size_t i = 0; i < waiting_.size(); ++i) {
    const at::Tensor gradient = std::exchange(waiting_[i], at::Tensor());
    if (gradient.defined()) store(static_cast<int>(i), gradient, 1.0f);
  }
  waiting_entry_ = LedgerEntry();
  for (const int page : pages) {
    start_reduction(page);
    pages_[page].reduction_started = false;
  }
  retire(0);
}

void Reducer::begin_training(const std::vector<int>& pages) {
  if (!on_begins_) throw UsageError("a parameter got a gradient that was not trained when the reducer was made");
  on_begins_(pages);
  for (const int page : pages) admit(page);
}

void Reducer::add(const std::vector<at::Tensor>& parameters, const std::vector<bool>& offloaded) {
  reset();
  parameters_.insert(parameters_.end(), parameters.begin(), parameters.end());
  in_frame_.resize(parameters_.size());
  arrived_this_backward_.resize(parameters_.size());
  received_since_reset_.resize(parameters_.size());
  received_anywhere_.resize(parameters_.size());
  waiting_.resize(parameters_.size());
  kept_.resize(parameters_.size());
  for (std::size_t i = may_train_.size(); i < parameters_.size(); ++i) {
    may_train_.push_back(layout_->parameters()[i].group >= 0);
  }
  const std::size_t first = pages_.size();
  pages_.resize(layout_->pages().size());
  gathered_.resize(pages_.size());
  device_squares_.grow(pages_.size());
  policy_.offloaded = offloaded;
  allocate_pool();
  for (std::size_t page = first; page < pages_.size(); ++page) {
    if (layout_->pages()[page].trainable) admit(static_cast<int>(page));
  }
  hook_early();
}

void Reducer::replace(int parameter, const at::Tensor& tensor) {
  parameters_[parameter] = tensor;
  hook_early();
}

/// Memory for the gradients of a page that was not trained so far. Collective.
void Reducer::admit(int page) {
  describe(page);
  order_.push_back(page);
  auto& state = pages_[page];
  const auto& spec = layout_->pages()[page];
  if (!policy_.sharded) {
    const std::int64_t bytes = spec.padded_numel * element_bytes(frame_dtype(page));
    auto memory = communicator_->allocate(bytes, "gradients");
    state.home = state.frame = memory->data();
    admitted_frames_.push_back({std::move(memory), LedgerEntry(ledger_, MemoryKind::kGradients, bytes)});
    return;
  }
  if (may_keep(page)) return;  // as autograd makes them
  const std::int64_t bytes = spec.shard_numel * element_bytes(sum_dtype(page));
  auto shard = std::make_unique<memory::DeviceBuffer>(
      bytes, policy_.offloaded[page] ? policy_.host : memory::MemoryPlace(device_), ledger_, MemoryKind::kGradients);
  state.result = shard->data();
  state.result_dtype = sum_dtype(page);
  admitted_shards_[page] = std::move(shard);
  if (travels(page)) {
    if (!send_stream_) {
      send_stream_ = c10::impl::VirtualGuardImpl(device_.type()).getStreamFromGlobalPool(device_);
    }
    for (auto& slot : slots_) slot.memory.reset();  // they are as large as the largest page
  }
  if (reduces_into_shard(page) || scratch_->bytes() >= 4 * spec.shard_numel) return;
  scratch_ = std::make_unique<memory::DeviceBuffer>(4 * spec.shard_numel, device_, ledger_, MemoryKind::kBuffers);
}

/// Collective: all ranks come here in the same backward, or none does.
void Reducer::widen() {
  if (policy_.sharded || widened_ || !policy_.adding) return;
  c10::AutoGradMode no_grad(false);
  retire(0);
  for (const int page : order_) invalidate_sum(page);
  const DType narrow = policy_.accumulation_dtype;
  std::vector<std::pair<std::byte*, std::byte*>> before;  // home and frame of each page of the order
  for (const int page : order_) before.emplace_back(pages_[page].home, pages_[page].frame);
  const auto old_frames = std::move(whole_frames_);
  const auto old_admitted = std::move(admitted_frames_);
  admitted_frames_.clear();
  const auto old_pool = std::move(frames_);
  policy_.accumulation_dtype = policy_.adding->accumulation_dtype;
  policy_.frame_dtype = policy_.adding->frame_dtype;
  widened_ = true;
  allocate_whole_frames();
  allocate_pool();
  for (std::size_t i = 0; i < order_.size(); ++i) {
    widen_page(order_[i], before[i].first, before[i].second, narrow, *old_pool);
  }
  // The frames of before belong to the stream that made them, and this one may be another. It happens once.
  paging::wait_for_stream(device_, *communicator_, "gradients on their way to frames of fp32");
}

/// Takes over what stands in a page's frames of before, which have the type `narrow` on 16-bit pages.
void Reducer::widen_page(int page, std::byte* home, std::byte* frame, DType narrow, paging::FramePool& pool) {
  auto& state = pages_[page];
  const auto& spec = layout_->pages()[page];
  const DType before = spec.dtype == DType::kFloat32 ? DType::kFloat32 : narrow;
  state.order.enter(device_);
  const auto move = [&](std::byte* from, DType from_type, std::byte* to, std::int64_t numel) {
    memory::flat_view(to, numel, scalar_type_of(frame_dtype(page)), device_)
        .copy_(memory::flat_view(from, numel, scalar_type_of(from_type), device_));
  };
  if (state.filled) {
    std::byte* target = policy_.whole_result ? state.home : own_shard(page);
    move(state.result, state.result_dtype, target, policy_.whole_result ? spec.padded_numel : spec.shard_numel);
    state.result = target;
    state.result_at_start = policy_.whole_result;
    state.result_dtype = frame_dtype(page);
  }
  if (frame == nullptr) {
    state.frame = nullptr;
  } else if (frame == home) {
    if (state.in_frame > 0) move(home, before, state.home, spec.padded_numel);
  } else {
    state.frame = frames_->acquire(spec.padded_numel * element_bytes(frame_dtype(page)));
    move(frame, before, state.frame, spec.padded_numel);
    pool.release(frame);
  }
}

}  // namespace zeropage::reduce
