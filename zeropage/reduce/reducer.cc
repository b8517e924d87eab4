#include "zeropage/reduce/reducer.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/mul.h>
#include <c10/core/GradMode.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "zeropage/base/blocking.h"
#include "zeropage/base/checked.h"
#include "zeropage/base/error.h"
#include "zeropage/paging/pager.h"
#include "zeropage/reduce/pieces.h"
#include "zeropage/reduce/transition.h"

namespace zeropage::reduce {
namespace {

void set_bit(std::string& bits, std::size_t i) { bits[i / 8] = static_cast<char>(bits[i / 8] | (1 << (i % 8))); }
bool get_bit(std::string_view bits, std::size_t i) { return (bits[i / 8] >> (i % 8)) & 1; }

std::vector<int> trained_pages(const layout::Layout& layout) {
  std::vector<int> pages;
  for (const auto& page : layout.pages()) {
    if (page.trainable) pages.push_back(page.index);
  }
  return pages;
}

/// The policy with entries for all pages.
ReducePolicy completed(ReducePolicy policy, const layout::Layout& layout) {
  policy.offloaded.resize(layout.pages().size());
  return policy;
}

}  // namespace

Reducer::Reducer(std::shared_ptr<const layout::Layout> layout, std::vector<at::Tensor> parameters,
                 std::shared_ptr<comm::Communicator> communicator, c10::Device device, std::shared_ptr<Ledger> ledger,
                 const ReducePolicy& policy)
    : layout_(std::move(layout)),
      parameters_(std::move(parameters)),
      communicator_(std::move(communicator)),
      device_(device),
      ledger_(std::move(ledger)),
      policy_(completed(policy, *layout_)),
      pages_(layout_->pages().size()),
      order_(trained_pages(*layout_)),
      norms_(layout_, *communicator_, device_, policy_.squares),
      shards_(layout_, *communicator_, device_, ledger_, policy_),
      kept_(parameters_.size()),
      gathered_(pages_.size()),
      in_frame_(parameters_.size()),
      arrived_this_backward_(parameters_.size()),
      received_since_reset_(parameters_.size()),
      received_anywhere_(parameters_.size()),
      deferred_(parameters_.size()),
      hooks_(
          device_,
          [this] {
            if (before_gradients_) before_gradients_();
          },
          [this](int parameter) { on_gradient(parameter); }) {
  for (const auto& parameter : layout_->parameters()) may_train_.push_back(parameter.group >= 0);
  for (const int page : order_.pages()) describe(page);
  if (policy_.disk) policy_.disk->begin_pass({});  // writes run during the backward at all times, and none is undone
  if (policy_.sharded) {
    use_shards(/*offloaded=*/false);
    use_shards(/*offloaded=*/true);
    std::int64_t scratch_numel = 0;
    for (const int page : order_.pages()) {
      if (!reduces_into_shard(page)) scratch_numel = std::max(scratch_numel, layout_->pages()[page].shard_numel);
    }
    reserve_scratch(scratch_numel);
  }
  frames_ = std::make_unique<GradientFrames>(layout_, order_.pages(), *communicator_, device_, ledger_, policy_);
  use_homes();
  if (std::ranges::any_of(order_.pages(), [this](int page) { return policy_.sharded && is_sent_to_host(page); })) {
    send_stream_ = c10::impl::VirtualGuardImpl(device_.type()).getStreamFromGlobalPool(device_);
  }
  hooks_.install_early(parameters_, may_train_);
}

Reducer::~Reducer() {
  hooks_.remove();
  for (const int page : order_.pages()) forget_kept(page);
}

SumState Reducer::move_to(int page, SumState state) {
  auto& sum = pages_[page].sum;
  return std::exchange(sum, checked_transition(sum, state, pages_[page].label + ": the state of their sum"));
}

void Reducer::move_backward_to(BackwardState state) {
  backward_ = checked_transition(backward_, state, "the state of the backward");
}

/// Listeners must have been notified before.
void Reducer::forget_sum(int page) {
  if (pages_[page].has_sum()) move_to(page, SumState::kNone);
}

void Reducer::describe(int page) {
  auto& state = pages_[page];
  state.label = "gradients of " + paging::page_label(*layout_, page);
  const bool offloaded = policy_.sharded && policy_.offloaded[page];
  state.result_device = offloaded ? policy_.host.device : device_;
  state.keeps = policy_.may_keep(page);
  state.expected = static_cast<int>(layout_->pages()[page].placements.size());
  norms_.add_page(page);
}

void Reducer::reserve_scratch(std::int64_t numel) {
  if (scratch_ && scratch_->bytes() >= 4 * numel) return;
  scratch_order_.enter(device_);  // before the smaller one is freed
  scratch_ = std::make_unique<memory::DeviceBuffer>(4 * numel, device_, ledger_, MemoryKind::kBuffers);
}

/// Allocates the shards of offloaded pages, or of the others, in which sums are from now on.
void Reducer::use_shards(bool offloaded) {
  shards_.allocate(order_.pages(), offloaded);
  for (const int page : order_.pages()) {
    if (policy_.offloaded[page] != offloaded) continue;
    pages_[page].result = shards_.data(page);
    pages_[page].result_dtype = sum_dtype(page);
  }
}

/// Whole pages receive gradients in their own frames.
void Reducer::use_homes() {
  for (const int page : order_.pages()) pages_[page].frame = frames_->home(page);
}

/// Communicators write fp32 shards on the device of the frames.
bool Reducer::reduces_into_shard(int page) const {
  const auto& state = pages_[page];
  return state.result_dtype == DType::kFloat32 && state.result_device == device_ && !on_disk(page);
}

void Reducer::on_gradient(int parameter) {
  at::Tensor& gradient = parameters_[parameter].mutable_grad();
  if (!gradient.defined() || !may_train_[parameter]) return;
  if (gradient.layout() != c10::kStrided) {
    throw UsageError(
        fmt::format("the gradient of parameter '{}' is sparse; zeropage needs dense gradients: construct the "
                    "embedding with sparse=False",
                    layout_->parameters()[parameter].name));
  }
  std::unique_lock<std::mutex> lock(mutex_, std::try_to_lock);
  if (!lock.owns_lock()) {
    auto blocking = enter_blocking();
    lock.lock();
  }
  if (must_defer(parameter)) {
    defer(parameter, gradient);
  } else {
    add_gradient(parameter, gradient, policy_.pre_scale * factor_);
  }
  gradient.reset();
  received_since_reset_[parameter] = true;
  anything_arrived_ = true;
  if (!is_running(backward_)) move_backward_to(BackwardState::kUnprocessed);
  if (reduces()) start_ready_reductions();
}

void Reducer::acquire_frame(int page) {
  auto& state = pages_[page];
  if (state.frame != nullptr) return;
  if (!policy_.sharded && communicator_->size() == 1) return reuse_sum_as_accumulator(page);
  retire_reductions(kMaxInFlight);
  state.frame = frames_->acquire(page);
}

/// A single rank's sum is in the frame that received its gradients: later ones are added there, in order.
void Reducer::reuse_sum_as_accumulator(int page) {
  auto& state = pages_[page];
  invalidate_sum(page);
  state.frame = frames_->home(page);
  forget_sum(page);
  for (const auto& place : layout_->pages()[page].placements) {
    in_frame_[place.parameter] = received_since_reset_[place.parameter];
    state.in_frame += received_since_reset_[place.parameter] ? 1 : 0;
  }
}

void Reducer::add_gradient(int parameter, const at::Tensor& gradient, float scale) {
  c10::AutoGradMode no_grad(false);
  at::AutoDispatchBelowADInplaceOrView below_autograd;
  const int page = layout_->page_of(parameter);
  pages_[page].order.enter(device_);
  const auto scaled = [&] { return scale == 1.0f ? gradient : at::mul(gradient, scale); };
  if (!pages_[page].keeps || !keep(parameter, scaled())) {
    acquire_frame(page);
    write_to_frame(parameter, gradient, /*first=*/!in_frame_[parameter], scale);
  }
  note_arrival(parameter);
}

void Reducer::note_arrival(int parameter) {
  const int page = layout_->page_of(parameter);
  auto& state = pages_[page];
  state.has_new_gradients = true;
  if (!in_frame_[parameter]) {
    in_frame_[parameter] = true;
    ++state.in_frame;
  }
  if (arrived_this_backward_[parameter]) return;
  arrived_this_backward_[parameter] = true;
  if (++state.arrived_this_backward == state.expected && reduces()) order_.note_complete(page);
}

/// Writes to the page's frame: assigns the first gradient, adds later ones. `gradient`: [parameter.shape], any type.
void Reducer::write_to_frame(int parameter, const at::Tensor& gradient, bool first, float scale) {
  const int page = layout_->page_of(parameter);
  const DType dtype = frame_dtype(page);
  const std::int64_t element = element_bytes(dtype);
  const at::Tensor& variable = parameters_[parameter];
  std::byte* target = pages_[page].frame + layout_->offset_of(parameter) * element;
  const comm::OnReduced on_reduced =
      stores_sums() ? norms_.watch_parameter(parameter, target, dtype) : comm::OnReduced();
  if (first && scale == 1.0f && device_.is_cpu() && gradient.device().is_cpu() &&
      dtype_of(gradient.scalar_type()) == dtype && gradient.strides() == variable.strides()) {
    const auto* source = static_cast<const std::byte*>(gradient.const_data_ptr());
    return in_pieces(gradient.numel(), on_reduced, [&](std::int64_t begin, std::int64_t numel) {
      std::memcpy(target + begin * element, source + begin * element, static_cast<std::size_t>(numel * element));
    });
  }
  const auto type = scalar_type_of(dtype);
  const at::Tensor scaled = scale == 1.0f ? gradient : at::mul(gradient.to(at::kFloat), scale);
  const auto move = [&](at::Tensor to, const at::Tensor& from) { first ? to.copy_(from) : to.add_(from); };
  if (on_reduced && scaled.is_contiguous() && variable.is_contiguous()) {
    const auto whole = memory::flat_view(target, scaled.numel(), type, device_);
    return in_pieces(scaled.numel(), on_reduced, [&](std::int64_t begin, std::int64_t numel) {
      move(whole.narrow(0, begin, numel), scaled.view(-1).narrow(0, begin, numel));
    });
  }
  move(memory::view_of(target, variable.sizes(), variable.strides(), type, device_), scaled);
  if (on_reduced) on_reduced(0, variable.numel());
}

/// Writes zeros for missing gradients; from here on the frame belongs to the reduction.
void Reducer::complete_frame(int page) {
  auto& state = pages_[page];
  const std::int64_t element = element_bytes(frame_dtype(page));
  for (const auto& place : layout_->pages()[page].placements) {
    if (!in_frame_[place.parameter] && !state.keeps) {
      memory::zero_bytes(state.frame + place.offset * element, place.numel * element, device_);
      if (stores_sums()) norms_.watch_parameter(place.parameter, nullptr, DType::kFloat32);
    }
    in_frame_[place.parameter] = false;
    arrived_this_backward_[place.parameter] = false;
  }
  if (policy_.coded && !state.keeps) zero_gaps(page);
  state.in_frame = 0;
  state.arrived_this_backward = 0;
}

void Reducer::start_ready_reductions() {
  retire(SIZE_MAX);  // waits for nothing, but advances collectives of several stages
  while (const auto page = order_.next()) {
    if (pages_[*page].arrived_this_backward < pages_[*page].expected) return;
    start_reduction(*page);
    order_.advance();
  }
}

void Reducer::retire(std::size_t keep) {
  while (!in_flight_.empty()) {
    auto& oldest = in_flight_.front();
    if (in_flight_.size() > keep) {
      oldest.work->wait();
    } else if (!oldest.work->poll()) {
      return;
    }
    if (oldest.settle) oldest.settle();
    const int page = oldest.page;
    in_flight_.pop_front();
    if (page != kNoPage) complete(page);
  }
}

void Reducer::listen(std::function<void(int page)> sum_ready, std::function<void(int page)> sum_invalidated) {
  on_sum_ready_ = std::move(sum_ready);
  on_sum_invalidated_ = std::move(sum_invalidated);
}

void Reducer::complete(int page) {
  move_to(page, SumState::kReady);
  if (boundary_) square_where_it_is(page);
  if (on_sum_ready_) on_sum_ready_(page);
}

void Reducer::invalidate_sum(int page) {
  if (!pages_[page].result_device.is_cpu()) norms_.forget(page);
  if (pages_[page].sum != SumState::kReady) return;
  move_to(page, SumState::kInvalidated);
  if (on_sum_invalidated_) on_sum_invalidated_(page);
}

std::vector<std::string> Reducer::exchange(const std::string& mine, std::string_view what) {
  comm::Communicator& job = communicator_->job();
  const std::string all = comm::all_gather_small(job, mine, comm::Tag{what, 0});
  std::vector<std::string> parts;
  for (int rank = 0; rank < job.size(); ++rank) parts.push_back(all.substr(rank * mine.size(), mine.size()));
  return parts;
}

void Reducer::begin_backward(bool boundary, bool adds_up) {
  boundary_ = boundary;
  if (is_running(backward_)) move_backward_to(BackwardState::kUnprocessed);  // it ended in an error
  unchecked_.reset();
  take_left_gradients();
  hooks_.install(parameters_, may_train_);
  factor_ = 1.0f;
  if (!policy_.sharded && adds_up) widen();
  const bool whole_pages_reduce = policy_.overlap && boundary && (communicator_->size() > 1 || on_sum_ready_);
  move_backward_to(policy_.sharded || whole_pages_reduce ? BackwardState::kReducing : BackwardState::kAccumulating);
}

void Reducer::end_backward() {
  take_left_gradients();
  const bool exchanged = reduces() && boundary_;
  if (reduces()) reduce_rest();
  forget_backward();
  move_backward_to(exchanged ? BackwardState::kExchanged : BackwardState::kEnded);
}

void Reducer::forget_backward() {
  unchecked_.reset();  // after an error
  for (const int page : order_.pages()) pages_[page].arrived_this_backward = 0;
  std::fill(arrived_this_backward_.begin(), arrived_this_backward_.end(), false);
  order_.restart();
}

void Reducer::finish() {
  take_left_gradients();
  if (backward_ != BackwardState::kExchanged) {
    boundary_ = true;
    reduce_rest();
    forget_backward();
    move_backward_to(BackwardState::kExchanged);
  }
  retire(0);
  for (const int page : order_.pages()) {
    pages_[page].order.enter(device_);
    square_where_it_is(page);
  }
}

void Reducer::reduce_rest() {
  c10::AutoGradMode no_grad(false);
  while (reduces()) {
    const auto page = order_.next();
    if (!page) break;
    start_reduction(*page);
    order_.advance();
  }
  // Every rank has started the same reductions by now, so this exchange is at the same position in their sequences.
  const std::vector<int> pages = order_.pages();  // a copy, because pages may be added
  const std::size_t first_deferred = 2 * pages.size();
  const std::size_t first_parameter = first_deferred + pages_.size();
  const std::size_t parameters = boundary_ ? received_since_reset_.size() : 0;
  std::string mine((first_parameter + parameters + 7) / 8, '\0');
  for (std::size_t i = 0; i < pages.size(); ++i) {
    if (pages_[pages[i]].has_new_gradients) set_bit(mine, i);
    if (pages_[pages[i]].in_frame > 0) set_bit(mine, pages.size() + i);
  }
  for (std::size_t i = 0; i < deferred_.size(); ++i) {
    if (!deferred_[i].defined()) continue;
    set_bit(mine, first_deferred + static_cast<std::size_t>(layout_->page_of(static_cast<int>(i))));
  }
  for (std::size_t i = 0; i < parameters; ++i) {
    if (received_since_reset_[i]) set_bit(mine, first_parameter + i);
  }
  const auto parts = exchange(mine, "pages with gradients");
  start_unchecked();
  const auto anywhere = [&](std::size_t bit) {
    return std::any_of(parts.begin(), parts.end(), [&](const auto& part) { return get_bit(part, bit); });
  };
  for (std::size_t i = 0; i < parameters; ++i) received_anywhere_[i] = anywhere(first_parameter + i);
  bool any_gradient = false;
  for (std::size_t i = 0; i < pages.size(); ++i) {
    if (anywhere(pages.size() + i)) start_reduction(pages[i]);
    any_gradient |= anywhere(i);
    order_.note_backward(pages[i], anywhere(i));
    pages_[pages[i]].has_new_gradients = false;
  }
  std::vector<int> with_deferred;
  for (std::size_t page = 0; page < pages_.size(); ++page) {
    if (anywhere(first_deferred + page)) with_deferred.push_back(static_cast<int>(page));
  }
  reduce_deferred(with_deferred);
  boundary_ ? retire(0) : retire_reductions(0);
  if (reduces() && any_gradient && !order_.is_settled()) {
    order_.settle(communicator_->job());
    frames_->trim();  // while the order was preliminary, there may have been more frames than are needed later
  }
  unchecked_.reset();
}

ReducedGradient Reducer::gradient(int page) const {
  const auto& state = pages_[page];
  return {state.has_sum() ? state.result : nullptr, state.result_dtype, state.result_device};
}

void Reducer::reset() {
  retire(0);
  for (const int page : order_.pages()) {
    auto& state = pages_[page];
    invalidate_sum(page);
    forget_sum(page);
    state.in_frame = 0;
    state.has_new_gradients = false;
    norms_.forget(page);
    state.order.enter(device_);  // before what it has is freed
    forget_kept(page);
    std::byte* home = frames_->home(page);
    if (state.frame != nullptr && state.frame != home) frames_->release(state.frame, state.order.leave());
    state.frame = home;
  }
  norms_.forget_all_on_device();
  std::fill(in_frame_.begin(), in_frame_.end(), false);
  std::fill(received_since_reset_.begin(), received_since_reset_.end(), false);
  std::fill(deferred_.begin(), deferred_.end(), at::Tensor());
  for (std::size_t i = 0; i < parameters_.size(); ++i) {
    if (may_train_[i]) parameters_[i].mutable_grad().reset();
  }
  deferred_entry_ = LedgerEntry();
  std::fill(received_anywhere_.begin(), received_anywhere_.end(), false);
  forget_backward();
  move_backward_to(BackwardState::kNone);
  anything_arrived_ = false;
}

void Reducer::unload() {
  reset();
  trim();
  shards_.free_on_device();
  frames_->free_homes();
}

void Reducer::reload() {
  if (policy_.sharded) return use_shards(/*offloaded=*/false);
  frames_->allocate_homes(order_.pages());
  use_homes();
}

}  // namespace zeropage::reduce
