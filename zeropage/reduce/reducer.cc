#include "zeropage/reduce/reducer.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/mul.h>
#include <c10/core/GradMode.h>
#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "zeropage/base/blocking.h"
#include "zeropage/base/error.h"
#include "zeropage/paging/pager.h"

namespace zeropage::reduce {
namespace {

// Frames that may be waiting for peers: one being reduced and one behind it keep the transport busy.
constexpr std::size_t kMaxInFlight = 2;

constexpr std::int64_t round_to_4k(std::int64_t bytes) { return (bytes + 4095) / 4096 * 4096; }

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
      arrived_(parameters_.size()),
      received_(parameters_.size()) {
  for (const auto& page : layout_->pages()) {
    auto& state = pages_[page.index];
    state.label = "gradients of " + paging::page_label(*layout_, page.index);
    if (!page.trainable) continue;
    state.expected = static_cast<int>(page.placements.size());
    order_.push_back(page.index);
  }
  std::reverse(order_.begin(), order_.end());
  if (policy_.sharded) {
    allocate_shards();
  } else {
    allocate_whole_frames();
  }
  hooks_ = std::make_unique<GradientHooks>(parameters_, [this](int parameter) { on_gradient(parameter); });
}

Reducer::~Reducer() { hooks_.reset(); }

DType Reducer::frame_dtype(int page) const {
  if (policy_.sharded) return policy_.frame_dtype;
  return layout_->pages()[page].dtype == DType::kFloat32 ? DType::kFloat32 : policy_.accumulation_dtype;
}

void Reducer::allocate_shards() {
  std::int64_t shard_bytes = 0;
  std::int64_t frame_bytes = 0;
  std::int64_t largest_shard_numel = 0;
  for (int index : order_) {
    const auto& page = layout_->pages()[index];
    shard_bytes += page.shard_numel * element_bytes(policy_.accumulation_dtype);
    frame_bytes += round_to_4k(page.padded_numel * element_bytes(policy_.frame_dtype));
    largest_shard_numel = std::max(largest_shard_numel, page.shard_numel);
  }
  shards_ = std::make_unique<paging::DeviceBuffer>(shard_bytes, device_, ledger_, MemoryKind::kGradients);
  std::int64_t offset = 0;
  for (int index : order_) {
    auto& state = pages_[index];
    state.result = shards_->data() + offset;
    state.result_dtype = policy_.accumulation_dtype;
    offset += layout_->pages()[index].shard_numel * element_bytes(policy_.accumulation_dtype);
  }
  if (policy_.accumulation_dtype != DType::kFloat32) {
    scratch_ = std::make_unique<paging::DeviceBuffer>(4 * largest_shard_numel, device_, ledger_, MemoryKind::kBuffers);
  }
  // Twice: a page may get gradients again while its first frame is being reduced. Only what is touched costs memory.
  frames_ = communicator_->one_sided()
                ? paging::make_shared_frame_pool(*communicator_, 2 * frame_bytes + 4096, ledger_, MemoryKind::kFrames)
                : paging::make_private_frame_pool(device_, INT64_MAX, ledger_, MemoryKind::kFrames);
}

void Reducer::allocate_whole_frames() {
  std::int64_t bytes = 0;
  for (int index : order_) {
    bytes += round_to_4k(layout_->pages()[index].padded_numel * element_bytes(frame_dtype(index)));
  }
  whole_frames_ = communicator_->allocate(std::max<std::int64_t>(bytes, 1), "gradients");
  whole_entry_ = LedgerEntry(ledger_, MemoryKind::kGradients, bytes);
  std::int64_t offset = 0;
  for (int index : order_) {
    auto& state = pages_[index];
    state.frame = whole_frames_->data() + offset;
    offset += round_to_4k(layout_->pages()[index].padded_numel * element_bytes(frame_dtype(index)));
  }
}

void Reducer::on_gradient(int parameter) {
  at::Tensor& gradient = parameters_[parameter].mutable_grad();
  if (!gradient.defined() || !layout_->parameters()[parameter].trainable) return;
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
  store(parameter, gradient);
  gradient.reset();
  received_[parameter] = true;
  anything_arrived_ = true;
  backward_open_ = true;
  if (policy_.sharded) launch_ready();
}

void Reducer::acquire_frame(int page) {
  auto& state = pages_[page];
  if (state.frame != nullptr) return;
  retire(/*all=*/false);
  state.frame = frames_->acquire(layout_->pages()[page].padded_numel * element_bytes(policy_.frame_dtype));
}

void Reducer::store(int parameter, const at::Tensor& gradient) {
  c10::AutoGradMode no_grad(false);
  at::AutoDispatchBelowADInplaceOrView below_autograd;
  const int page = layout_->page_of(parameter);
  auto& state = pages_[page];
  acquire_frame(page);
  const DType dtype = frame_dtype(page);
  const at::Tensor& variable = parameters_[parameter];
  std::byte* target = state.frame + layout_->offset_of(parameter) * element_bytes(dtype);
  const bool first = !arrived_[parameter];
  if (first && policy_.pre_scale == 1.0f && device_.is_cpu() && gradient.device().is_cpu() &&
      dtype_of(gradient.scalar_type()) == dtype && gradient.strides() == variable.strides()) {
    std::memcpy(target, gradient.const_data_ptr(), gradient.nbytes());
  } else {
    auto place = at::from_blob(target, variable.sizes(), variable.strides(),
                               at::TensorOptions().dtype(scalar_type_of(dtype)).device(device_));
    const at::Tensor scaled =
        policy_.pre_scale == 1.0f ? gradient : at::mul(gradient.to(at::kFloat), policy_.pre_scale);
    if (first) {
      place.copy_(scaled);
    } else {
      place.add_(scaled);
    }
  }
  if (!first) return;
  arrived_[parameter] = true;
  state.touched = true;
  if (++state.arrived == state.expected && !order_settled_ && !state.launched) completed_.push_back(page);
}

void Reducer::fill_gaps(int page) {
  auto& state = pages_[page];
  const std::int64_t element = element_bytes(frame_dtype(page));
  for (const auto& place : layout_->pages()[page].placements) {
    if (!arrived_[place.parameter]) {
      paging::zero_bytes(state.frame + place.offset * element, place.numel * element, device_);
    }
    if (policy_.sharded) arrived_[place.parameter] = false;
  }
  if (policy_.sharded) state.arrived = 0;
}

void Reducer::launch_ready() {
  for (; next_ < order_.size(); ++next_) {
    const auto& state = pages_[order_[next_]];
    if (!state.expects_gradients()) continue;
    if (state.arrived < state.expected) return;
    launch(order_[next_]);
  }
}

void Reducer::launch(int page) {
  auto& state = pages_[page];
  const auto& spec = layout_->pages()[page];
  acquire_frame(page);
  fill_gaps(page);
  std::byte* frame = std::exchange(state.frame, nullptr);
  const comm::Tag tag{state.label, page};
  const DType dtype = policy_.frame_dtype;
  const bool direct = policy_.reduce_scatter && state.result_dtype == DType::kFloat32;
  if (direct) {
    in_flight_.push_back({communicator_->reduce_scatter(frame, state.result, spec.shard_numel, dtype, DType::kFloat32,
                                                        /*accumulate=*/state.filled, tag),
                          frame});
  } else {
    std::byte* summed = frame + communicator_->rank() * spec.shard_numel * element_bytes(dtype);
    DType summed_dtype = dtype;
    if (!policy_.reduce_scatter) {
      communicator_->all_reduce(frame, spec.padded_numel, dtype, tag)->wait();
    } else {
      summed = scratch_->data();
      summed_dtype = DType::kFloat32;
      communicator_->reduce_scatter(frame, summed, spec.shard_numel, dtype, summed_dtype, false, tag)->wait();
    }
    auto sum = paging::flat_view(summed, spec.shard_numel, scalar_type_of(summed_dtype), device_);
    auto shard = paging::flat_view(state.result, spec.shard_numel, scalar_type_of(state.result_dtype), device_);
    state.filled ? shard.add_(sum) : shard.copy_(sum);
    frames_->release(frame);
  }
  state.filled = true;
  state.launched = true;
}

void Reducer::retire(bool all) {
  while (!in_flight_.empty()) {
    auto& oldest = in_flight_.front();
    if (all || in_flight_.size() > kMaxInFlight) {
      oldest.work->wait();
    } else if (!oldest.work->poll()) {
      return;
    }
    frames_->release(oldest.frame);
    in_flight_.pop_front();
  }
}

std::vector<std::string> Reducer::exchange(const std::string& mine, std::string_view what) {
  const std::string all = comm::all_gather_small(*communicator_, mine, comm::Tag{what, 0});
  std::vector<std::string> parts;
  for (int rank = 0; rank < communicator_->size(); ++rank) parts.push_back(all.substr(rank * mine.size(), mine.size()));
  return parts;
}

void Reducer::end_backward() {
  if (!policy_.sharded) {
    backward_open_ = false;
    return;
  }
  c10::AutoGradMode no_grad(false);
  for (; next_ < order_.size(); ++next_) {
    if (pages_[order_[next_]].expects_gradients()) launch(order_[next_]);
  }
  // Every rank has launched the same pages by now, so this exchange comes at the same place of their sequences.
  const std::size_t bits = order_.size();
  std::string mine((2 * bits + 7) / 8, '\0');
  for (std::size_t i = 0; i < bits; ++i) {
    if (pages_[order_[i]].touched) set_bit(mine, i);
    if (pages_[order_[i]].arrived > 0) set_bit(mine, bits + i);
  }
  const auto parts = exchange(mine, "end of backward");
  const auto anywhere = [&](std::size_t bit) {
    return std::any_of(parts.begin(), parts.end(), [&](const auto& part) { return get_bit(part, bit); });
  };
  bool any_touched = false;
  for (std::size_t i = 0; i < bits; ++i) {
    auto& state = pages_[order_[i]];
    if (anywhere(bits + i)) launch(order_[i]);
    any_touched |= anywhere(i);
    state.quiet_backwards = anywhere(i) ? 0 : state.quiet_backwards + 1;
    state.touched = false;
    state.launched = false;
  }
  retire(/*all=*/true);
  if (any_touched && !order_settled_) settle_order();
  next_ = 0;
  backward_open_ = false;
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

void Reducer::finish() {
  if (policy_.sharded) {
    if (backward_open_) end_backward();
    return;
  }
  c10::AutoGradMode no_grad(false);
  std::string mine((order_.size() + 7) / 8, '\0');
  for (std::size_t i = 0; i < order_.size(); ++i) {
    if (pages_[order_[i]].arrived > 0) set_bit(mine, i);
  }
  const auto parts = exchange(mine, "pages with gradients");
  // From here on all ranks start the same collectives: there is nothing left to check.
  communicator_->set_checking(false);
  std::deque<std::pair<int, comm::WorkPtr>> summing;
  std::vector<comm::WorkPtr> gathering;
  const auto settle_oldest = [&] {
    summing.front().second->wait();
    if (policy_.whole_result && policy_.reduce_scatter) gathering.push_back(gather_whole(summing.front().first));
    summing.pop_front();
  };
  for (std::size_t i = 0; i < order_.size(); ++i) {
    if (std::none_of(parts.begin(), parts.end(), [&](const auto& part) { return get_bit(part, i); })) continue;
    if (auto work = sum_whole(order_[i])) summing.emplace_back(order_[i], std::move(work));
    if (summing.size() > kMaxInFlight) settle_oldest();
  }
  while (!summing.empty()) settle_oldest();
  for (auto& gather : gathering) gather->wait();
  communicator_->set_checking(true);
  backward_open_ = false;
}

comm::WorkPtr Reducer::sum_whole(int page) {
  auto& state = pages_[page];
  const auto& spec = layout_->pages()[page];
  fill_gaps(page);
  const comm::Tag tag{state.label, page};
  const DType dtype = frame_dtype(page);
  state.filled = true;
  state.result_dtype = dtype;
  state.result = policy_.whole_result ? state.frame : own_shard(page);
  if (communicator_->size() == 1) return nullptr;
  if (dtype != policy_.frame_dtype || (dtype != DType::kFloat32 && !policy_.whole_result)) {
    reduce_whole_to_fp32(page);
    return nullptr;
  }
  if (!policy_.reduce_scatter) return communicator_->all_reduce(state.frame, spec.padded_numel, dtype, tag);
  return communicator_->reduce_scatter(state.frame, own_shard(page), spec.shard_numel, dtype, dtype, false, tag);
}

comm::WorkPtr Reducer::gather_whole(int page) {
  const auto& state = pages_[page];
  const std::int64_t shard_bytes = layout_->pages()[page].shard_numel * element_bytes(frame_dtype(page));
  return communicator_->all_gather(own_shard(page), state.frame, shard_bytes, comm::Tag{state.label, page});
}

std::byte* Reducer::own_shard(int page) const {
  return pages_[page].frame +
         communicator_->rank() * layout_->pages()[page].shard_numel * element_bytes(frame_dtype(page));
}

void Reducer::reduce_whole_to_fp32(int page) {
  auto& state = pages_[page];
  const auto& spec = layout_->pages()[page];
  const comm::Tag tag{state.label, page};
  const DType dtype = frame_dtype(page);
  const DType travels = policy_.frame_dtype;
  auto frame = paging::flat_view(state.frame, spec.padded_numel, scalar_type_of(dtype), device_);
  std::byte* source = state.frame;
  std::unique_ptr<paging::DeviceBuffer> converted;
  if (travels != dtype) {
    converted = std::make_unique<paging::DeviceBuffer>(spec.padded_numel * element_bytes(travels), device_, ledger_,
                                                       MemoryKind::kBuffers);
    paging::flat_view(converted->data(), spec.padded_numel, scalar_type_of(travels), device_).copy_(frame);
    source = converted->data();
  }
  paging::DeviceBuffer sum(4 * spec.shard_numel, device_, ledger_, MemoryKind::kBuffers);
  communicator_->reduce_scatter(source, sum.data(), spec.shard_numel, travels, DType::kFloat32, false, tag)->wait();
  if (policy_.whole_result) {
    paging::flat_view(own_shard(page), spec.shard_numel, scalar_type_of(dtype), device_)
        .copy_(paging::flat_view(sum.data(), spec.shard_numel, at::kFloat, device_));
    gather_whole(page)->wait();
    return;
  }
  // The frame has been read by all ranks; at two or more of them its memory has room for the fp32 sum of one shard.
  state.result = state.frame;
  state.result_dtype = DType::kFloat32;
  paging::copy_bytes(state.result, sum.data(), sum.bytes(), device_);
}

ReducedGradient Reducer::gradient(int page) const {
  const auto& state = pages_[page];
  return state.filled ? ReducedGradient{state.result, state.result_dtype} : ReducedGradient{};
}

void Reducer::reset() {
  retire(/*all=*/true);
  for (int page : order_) {
    auto& state = pages_[page];
    state.arrived = 0;
    state.filled = false;
    state.launched = false;
    state.touched = false;
    if (policy_.sharded && state.frame != nullptr) frames_->release(std::exchange(state.frame, nullptr));
  }
  std::fill(arrived_.begin(), arrived_.end(), false);
  std::fill(received_.begin(), received_.end(), false);
  next_ = 0;
  anything_arrived_ = false;
  backward_open_ = false;
}

}  // namespace zeropage::reduce
