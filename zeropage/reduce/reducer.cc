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

namespace zeropage::reduce {
namespace {

constexpr std::int64_t kMemoryPageBytes = 4096;

void set_bit(std::string& bits, std::size_t i) { bits[i / 8] = static_cast<char>(bits[i / 8] | (1 << (i % 8))); }
bool get_bit(std::string_view bits, std::size_t i) { return (bits[i / 8] >> (i % 8)) & 1; }

}  // namespace

Reducer::Reducer(std::shared_ptr<const layout::Layout> layout, std::vector<at::Tensor> parameters,
                 std::shared_ptr<comm::Communicator> communicator, c10::Device device, std::shared_ptr<Ledger> ledger,
                 const ReducePolicy& policy)
    : layout_(std::move(layout)),
      parameters_(std::move(parameters)),
      communicator_(std::move(communicator)),
      device_(device),
      ledger_(std::move(ledger)),
      policy_(policy),
      pages_(layout_->pages().size()),
      device_squares_(device, *communicator_, pages_.size()),
      kept_(parameters_.size()),
      gathered_(pages_.size()),
      in_frame_(parameters_.size()),
      arrived_this_backward_(parameters_.size()),
      received_since_reset_(parameters_.size()),
      received_anywhere_(parameters_.size()),
      waiting_(parameters_.size()),
      reducing_(policy.sharded),
      hooks_(
          [this] {
            if (before_gradients_) before_gradients_();
          },
          [this](int parameter) { on_gradient(parameter); }) {
  policy_.offloaded.resize(pages_.size());
  for (const auto& parameter : layout_->parameters()) may_train_.push_back(parameter.group >= 0);
  for (const auto& page : layout_->pages()) {
    if (!page.trainable) continue;
    describe(page.index);
    order_.push_back(page.index);
  }
  std::reverse(order_.begin(), order_.end());
  if (policy_.disk) policy_.disk->begin_pass({});  // writes go behind the backward at all times, and none is taken back
  if (policy_.sharded) {
    allocate_shards();
  } else {
    allocate_whole_frames();
  }
  allocate_pool();
  if (std::ranges::any_of(order_, [this](int page) { return policy_.sharded && travels(page); })) {
    send_stream_ = c10::impl::VirtualGuardImpl(device_.type()).getStreamFromGlobalPool(device_);
  }
  hook_early();
}

Reducer::~Reducer() {
  hooks_.remove();
  for (const int page : order_) forget_kept(page);
}

void Reducer::describe(int page) {
  auto& state = pages_[page];
  state.label = "gradients of " + paging::page_label(*layout_, page);
  const bool offloaded = policy_.sharded && policy_.offloaded[page];
  state.result_device = offloaded ? policy_.host.device : device_;
  state.keeps = may_keep(page);
  state.expected = static_cast<int>(layout_->pages()[page].placements.size());
  state.segments = layout_->shard_segments(page, communicator_->rank());
  state.squares.resize(state.segments.size());
}

void Reducer::allocate_shards() {
  shards_ = allocate_shards(/*offloaded=*/false);
  offloaded_shards_ = allocate_shards(/*offloaded=*/true);
  std::int64_t scratch_numel = 0;
  for (int index : order_) {
    if (!reduces_into_shard(index)) scratch_numel = std::max(scratch_numel, layout_->pages()[index].shard_numel);
  }
  scratch_ = std::make_unique<memory::DeviceBuffer>(4 * scratch_numel, device_, ledger_, MemoryKind::kBuffers);
}

Reducer::ShardMemory Reducer::allocate_shards(bool offloaded) {
  const auto bytes_of = [&](int index) {
    const bool counts = policy_.offloaded[index] == offloaded && !on_disk(index) && !may_keep(index);
    return counts ? layout_->pages()[index].shard_numel * element_bytes(sum_dtype(index)) : 0;
  };
  ShardMemory shards;
  for (int index : order_) shards.bytes += bytes_of(index);
  const auto place = offloaded ? policy_.host : memory::MemoryPlace(device_);
  if (communicator_->one_sided() && communicator_->size() > 1 && device_.is_cpu()) {
    shards.shared = communicator_->allocate(std::max<std::int64_t>(shards.bytes, 1), "shards of gradients");
    shards.entry = LedgerEntry(ledger_, MemoryKind::kGradients, shards.bytes, place.tier);
  } else {
    shards.buffer = std::make_unique<memory::DeviceBuffer>(shards.bytes, place, ledger_, MemoryKind::kGradients);
  }
  std::int64_t offset = 0;
  for (int index : order_) {
    if (policy_.offloaded[index] != offloaded) continue;
    pages_[index].result = bytes_of(index) == 0 ? nullptr : shards.data() + offset;
    pages_[index].shard_offset = offset;
    pages_[index].result_dtype = sum_dtype(index);
    offset += bytes_of(index);
  }
  return shards;
}

/// Communicators write fp32 shards of the device that frames are on.
bool Reducer::reduces_into_shard(int page) const {
  const auto& state = pages_[page];
  return state.result_dtype == DType::kFloat32 && state.result_device == device_ && !on_disk(page);
}

void Reducer::allocate_pool() {
  std::int64_t frame_bytes = 0;
  for (const auto& page : layout_->pages()) {
    if (page.group < 0) continue;  // else it may be trained later
    frame_bytes += round_up(page.padded_numel * element_bytes(frame_dtype(page.index)), kMemoryPageBytes);
  }
  // Twice: a page may get gradients again while its first frame is being reduced. Only what is touched costs memory.
  frames_ = communicator_->one_sided()
                ? paging::make_shared_frame_pool(*communicator_, 2 * frame_bytes + kMemoryPageBytes, ledger_,
                                                 MemoryKind::kFrames)
                : paging::make_private_frame_pool(device_, INT64_MAX, ledger_, MemoryKind::kFrames);
}

void Reducer::allocate_whole_frames() {
  std::int64_t bytes = 0;
  for (int index : order_) {
    bytes += round_up(layout_->pages()[index].padded_numel * element_bytes(frame_dtype(index)), kMemoryPageBytes);
  }
  whole_frames_ = communicator_->allocate(std::max<std::int64_t>(bytes, 1), "gradients");
  whole_entry_ = LedgerEntry(ledger_, MemoryKind::kGradients, bytes);
  std::int64_t offset = 0;
  for (int index : order_) {
    auto& state = pages_[index];
    state.home = state.frame = whole_frames_->data() + offset;
    offset += round_up(layout_->pages()[index].padded_numel * element_bytes(frame_dtype(index)), kMemoryPageBytes);
  }
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
  if (has_no_place(parameter)) {
    wait_for_place(parameter, gradient);
  } else {
    store(parameter, gradient, policy_.pre_scale * factor_);
  }
  gradient.reset();
  received_since_reset_[parameter] = true;
  anything_arrived_ = true;
  backward_open_ = true;
  if (reducing_) start_ready_reductions();
}

void Reducer::acquire_frame(int page) {
  auto& state = pages_[page];
  if (state.frame != nullptr) return;
  if (!policy_.sharded && communicator_->size() == 1) return reuse_sum_as_accumulator(page);
  retire_reductions(kMaxInFlight);
  state.frame = frames_->acquire(layout_->pages()[page].padded_numel * element_bytes(frame_dtype(page)));
}

/// A single rank's sum is where its gradients came to: more of them are added there, in the order in which they come.
void Reducer::reuse_sum_as_accumulator(int page) {
  auto& state = pages_[page];
  invalidate_sum(page);
  state.frame = state.home;
  state.filled = false;
  for (const auto& place : layout_->pages()[page].placements) {
    in_frame_[place.parameter] = received_since_reset_[place.parameter];
    state.in_frame += received_since_reset_[place.parameter] ? 1 : 0;
  }
}

void Reducer::store(int parameter, const at::Tensor& gradient, float scale) {
  c10::AutoGradMode no_grad(false);
  at::AutoDispatchBelowADInplaceOrView below_autograd;
  const int page = layout_->page_of(parameter);
  pages_[page].order.enter(device_);
  const auto scaled = [&] { return scale == 1.0f ? gradient : at::mul(gradient, scale); };
  if (!pages_[page].keeps || !keep(parameter, scaled())) {
    acquire_frame(page);
    put(parameter, gradient, /*first=*/!in_frame_[parameter], scale);
  }
  note_arrival(parameter);
}

void Reducer::note_arrival(int parameter) {
  const int page = layout_->page_of(parameter);
  auto& state = pages_[page];
  state.touched = true;
  if (!in_frame_[parameter]) {
    in_frame_[parameter] = true;
    ++state.in_frame;
  }
  if (arrived_this_backward_[parameter]) return;
  arrived_this_backward_[parameter] = true;
  if (++state.arrived_this_backward == state.expected && reducing_ && !order_settled_ && !state.reduction_started)
    completed_.push_back(page);
}

/// Into the page's frame: assigned when it is the first one, else added.
void Reducer::put(int parameter, const at::Tensor& gradient, bool first, float scale) {
  const int page = layout_->page_of(parameter);
  const DType dtype = frame_dtype(page);
  const std::int64_t element = element_bytes(dtype);
  const at::Tensor& variable = parameters_[parameter];
  std::byte* target = pages_[page].frame + layout_->offset_of(parameter) * element;
  const comm::OnReduced on_reduced = stores_sums() ? watch_parameter(parameter, target, dtype) : comm::OnReduced();
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

/// Zeros where no gradient came; from here on the frame belongs to the reduction.
void Reducer::consume(int page) {
  auto& state = pages_[page];
  const std::int64_t element = element_bytes(frame_dtype(page));
  for (const auto& place : layout_->pages()[page].placements) {
    if (!in_frame_[place.parameter] && !state.keeps) {
      memory::zero_bytes(state.frame + place.offset * element, place.numel * element, device_);
      if (stores_sums()) watch_parameter(place.parameter, nullptr, DType::kFloat32);
    }
    in_frame_[place.parameter] = false;
    arrived_this_backward_[place.parameter] = false;
  }
  if (policy_.coded && !state.keeps) zero_gaps(page);
  state.in_frame = 0;
  state.arrived_this_backward = 0;
}

void Reducer::start_ready_reductions() {
  retire(SIZE_MAX);  // waits for nothing, but collectives of several stages go on
  for (; next_ < order_.size(); ++next_) {
    const auto& state = pages_[order_[next_]];
    if (!state.expects_gradients()) continue;
    if (state.arrived_this_backward < state.expected) return;
    start_reduction(order_[next_]);
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
  auto& state = pages_[page];
  state.reducing = false;
  state.sum_ready = true;
  if (boundary_) square_where_it_is(page);
  if (on_sum_ready_) on_sum_ready_(page);
}

void Reducer::invalidate_sum(int page) {
  if (!pages_[page].result_device.is_cpu()) forget_squares(page);
  if (std::exchange(pages_[page].sum_ready, false) && on_sum_invalidated_) on_sum_invalidated_(page);
}

std::vector<std::string> Reducer::exchange(const std::string& mine, std::string_view what) {
  const std::string all = comm::all_gather_small(*communicator_, mine, comm::Tag{what, 0});
  std::vector<std::string> parts;
  for (int rank = 0; rank < communicator_->size(); ++rank) parts.push_back(all.substr(rank * mine.size(), mine.size()));
  return parts;
}

void Reducer::begin_backward(bool boundary, bool adds_up) {
  boundary_ = boundary;
  anywhere_known_ = false;
  inside_ = false;  // a backward before may have ended in an error
  take_left_gradients();
  hooks_.install(parameters_, may_train_);
  inside_ = true;
  factor_ = 1.0f;
  if (policy_.sharded) return;
  if (adds_up) widen();
  reducing_ = policy_.overlap && boundary && (communicator_->size() > 1 || on_sum_ready_);
  reduced_ = false;
}

void Reducer::end_backward() {
  take_left_gradients();
  inside_ = false;
  if (reducing_) {
    reduce_rest();
    reduced_ = true;
  }
  forget_backward();
}

void Reducer::forget_backward() {
  for (int page : order_) pages_[page].arrived_this_backward = 0;
  std::fill(arrived_this_backward_.begin(), arrived_this_backward_.end(), false);
  next_ = 0;
  reducing_ = policy_.sharded;
  backward_open_ = false;
}

void Reducer::finish() {
  take_left_gradients();
  if (backward_open_ || !anywhere_known_ || !(policy_.sharded || reduced_)) {
    boundary_ = true;
    reduce_rest();
    forget_backward();
    reduced_ = true;
  }
  retire(0);
  for (const int page : order_) {
    pages_[page].order.enter(device_);
    square_where_it_is(page);
  }
}

void Reducer::reduce_rest() {
  c10::AutoGradMode no_grad(false);
  for (; reducing_ && next_ < order_.size(); ++next_) {
    if (pages_[order_[next_]].expects_gradients()) start_reduction(order_[next_]);
  }
  // Every rank has launched the same pages by now, so this exchange comes at the same place of their sequences.
  const std::size_t bits = order_.size();
  const std::size_t first_parameter = 2 * bits + pages_.size();
  const std::size_t parameters = boundary_ ? received_since_reset_.size() : 0;
  std::string mine((first_parameter + parameters + 7) / 8, '\0');
  for (std::size_t i = 0; i < bits; ++i) {
    if (pages_[order_[i]].touched) set_bit(mine, i);
    if (pages_[order_[i]].in_frame > 0) set_bit(mine, bits + i);
  }
  for (std::size_t i = 0; i < waiting_.size(); ++i) {
    if (waiting_[i].defined())
      set_bit(mine, 2 * bits + static_cast<std::size_t>(layout_->page_of(static_cast<int>(i))));
  }
  for (std::size_t i = 0; i < parameters; ++i) {
    if (received_since_reset_[i]) set_bit(mine, first_parameter + i);
  }
  const auto parts = exchange(mine, "pages with gradients");
  communicator_->set_checking(false);
  const auto anywhere = [&](std::size_t bit) {
    return std::any_of(parts.begin(), parts.end(), [&](const auto& part) { return get_bit(part, bit); });
  };
  for (std::size_t i = 0; i < parameters; ++i) received_anywhere_[i] = anywhere(first_parameter + i);
  anywhere_known_ = boundary_;
  bool any_touched = false;
  for (std::size_t i = 0; i < bits; ++i) {
    auto& state = pages_[order_[i]];
    if (anywhere(bits + i)) start_reduction(order_[i]);
    any_touched |= anywhere(i);
    state.backwards_without_gradient = anywhere(i) ? 0 : state.backwards_without_gradient + 1;
    state.touched = false;
    state.reduction_started = false;
  }
  std::vector<int> waiting;
  for (std::size_t page = 0; page < pages_.size(); ++page) {
    if (anywhere(2 * bits + page)) waiting.push_back(static_cast<int>(page));
  }
  place_waiting(waiting);
  boundary_ ? retire(0) : retire_reductions(0);
  if (reducing_ && any_touched && !order_settled_) settle_order();
  communicator_->set_checking(true);
}

void Reducer::settle_order() {
  std::vector<int> order = completed_;
  for (int page : order_) {
    if (std::find(completed_.begin(), completed_.end(), page) == completed_.end()) order.push_back(page);
  }
  communicator_
      ->broadcast(order.data(), static_cast<std::int64_t>(order.size() * sizeof(int)), 0,
                  comm::Tag{"order of gradient reduction", 0})
      ->wait();
  order_ = std::move(order);
  order_settled_ = true;
  frames_
      ->trim();  // the first backward, in an order that was only guessed, may have held more frames than any other will
}

ReducedGradient Reducer::gradient(int page) const {
  const auto& state = pages_[page];
  return {state.filled ? state.result : nullptr, state.result_dtype, state.result_device};
}

void Reducer::reset() {
  retire(0);
  for (int page : order_) {
    auto& state = pages_[page];
    invalidate_sum(page);
    state.in_frame = 0;
    state.filled = false;
    state.reduction_started = false;
    state.reducing = false;
    state.touched = false;
    forget_squares(page);
    forget_kept(page);
    if (state.frame != nullptr && state.frame != state.home) frames_->release(state.frame, state.order.leave());
    state.frame = state.home;
  }
  device_squares_.forget_all();
  std::fill(in_frame_.begin(), in_frame_.end(), false);
  std::fill(received_since_reset_.begin(), received_since_reset_.end(), false);
  std::fill(waiting_.begin(), waiting_.end(), at::Tensor());
  for (std::size_t i = 0; i < parameters_.size(); ++i) {
    if (may_train_[i]) parameters_[i].mutable_grad().reset();
  }
  waiting_entry_ = LedgerEntry();
  std::fill(received_anywhere_.begin(), received_anywhere_.end(), false);
  anywhere_known_ = false;
  forget_backward();
  inside_ = false;
  reduced_ = false;
  anything_arrived_ = false;
}

void Reducer::unload() {
  reset();
  trim();
  shards_ = {};
  whole_frames_.reset();
  admitted_frames_.clear();
  std::erase_if(admitted_shards_, [&](const auto& shard) { return !policy_.offloaded[shard.first]; });
  whole_entry_ = LedgerEntry();
}

void Reducer::reload() {
  if (policy_.sharded) {
    shards_ = allocate_shards(/*offloaded=*/false);
  } else {
    allocate_whole_frames();
  }
}

}  // namespace zeropage::reduce
