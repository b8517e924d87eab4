#include "zeropage/engine/gradient_views.h"

#include <ATen/ops/div.h>
#include <ATen/ops/where.h>
#include <c10/core/GradMode.h>
#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <utility>

#include "zeropage/base/blocking.h"
#include "zeropage/base/error.h"
#include "zeropage/comm/c10d/c10d_buffers.h"
#include "zeropage/engine/flat_values.h"

namespace zeropage::engine {
namespace {

/// Elements that are converted at a time: temporary memory.
constexpr std::int64_t kChunkNumel = 1 << 20;

template <typename Use>
void in_chunks(std::int64_t numel, Use&& use) {
  for (std::int64_t begin = 0; begin < numel; begin += kChunkNumel) use(begin, std::min(kChunkNumel, numel - begin));
}

/// Writes the mean, `sum` / `divisor`, to `to`; both flat.
void put_mean(const at::Tensor& to, const at::Tensor& sum, double divisor) {
  in_chunks(to.numel(), [&](std::int64_t begin, std::int64_t numel) {
    to.narrow(0, begin, numel).copy_(at::div(sum.narrow(0, begin, numel).to(at::kFloat), divisor));
  });
}

/// `sum` keeps the elements whose mean equals `seen`, and takes the others from `seen`.
void put_changed(const at::Tensor& sum, const at::Tensor& seen, double divisor) {
  in_chunks(sum.numel(), [&](std::int64_t begin, std::int64_t numel) {
    const auto kept = sum.narrow(0, begin, numel);
    const auto now = seen.narrow(0, begin, numel).to(kept.device());
    const auto before = at::div(kept.to(at::kFloat), divisor).to(now.scalar_type());
    kept.copy_(at::where(now.eq(before), kept.to(at::kFloat), now.to(at::kFloat).mul(divisor)));
  });
}

/// A tensor without access to data, so its home may be absent.
at::Tensor tensor_like(const at::Tensor& parameter, const c10::Storage& storage) {
  const auto keys =
      c10::DispatchKeySet(c10::computeDispatchKey(parameter.scalar_type(), c10::kStrided, parameter.device()));
  auto tensor = at::detail::make_tensor<c10::TensorImpl>(c10::Storage(storage), keys, parameter.dtype());
  tensor.unsafeGetTensorImpl()->set_sizes_and_strides(parameter.sizes(), parameter.strides());
  paging::mark(tensor);
  return tensor;
}

}  // namespace

GradientViews::GradientViews(ModelState& state, reduce::Reducer& reducer, comm::Communicator& communicator,
                             c10::Device device, const std::shared_ptr<Ledger>& ledger, std::int64_t max_live_bytes)
    : state_(state),
      reducer_(reducer),
      communicator_(communicator),
      device_(device),
      max_live_bytes_(max_live_bytes),
      handle_(std::make_shared<paging::PagerHandle>()),
      frames_(paging::make_private_frame_pool(device, max_live_bytes, ledger, MemoryKind::kFrames)) {
  handle_->pager.store(this);
  if (communicator.one_sided() && communicator.size() > 1) {
    generation_cell_ = communicator.allocate(sizeof(std::uint64_t), "windows of gradients");
  }
  make_gradients();
}

/// For trained parameters that have none yet.
void GradientViews::make_gradients() {
  const auto& layout = *state_.layout();
  gradients_.resize(state_.tensors().size());
  pages_.resize(layout.pages().size());
  for (const auto& page : layout.pages()) {
    if (!page.trainable || !pages_[page.index].label.empty()) continue;
    pages_[page.index].label = "mean gradients of " + paging::page_label(layout, page.index);
    for (const auto& place : page.placements) {
      gradients_[place.parameter].message = fmt::format(
          "the gradient of parameter '{}' is not resident now, and this code reads it without going through torch's "
          "operators (data_ptr, numpy); read a clone() of it",
          layout.parameters()[place.parameter].name);
      make_gradient(place.parameter);
    }
  }
}

GradientViews::~GradientViews() {
  // Absent gradients cannot be fetched any more, because peers may be gone.
  for (std::size_t i = 0; i < gradients_.size(); ++i) {
    if (gradients_[i].published && !is_resident(state_.layout()->page_of(static_cast<int>(i)))) {
      gradients_[i] = {};
      state_.tensors()[i].mutable_grad().reset();
    }
  }
  withdraw();
  handle_->pager.store(nullptr);
}

void GradientViews::make_gradient(int parameter) {
  auto& gradient = gradients_[parameter];
  const auto& layout = *state_.layout();
  const int page = layout.page_of(parameter);
  auto link = std::make_unique<paging::ParameterLink>();
  link->handle = handle_;
  link->page = page;
  link->paged = !pages_[page].direct;
  const std::int64_t bytes = layout.parameters()[parameter].numel * layout.pages()[page].element_bytes;
  gradient.storage = paging::make_linked_storage(std::move(link), nullptr, bytes, device_);
  paging::release_storage(gradient.storage.unsafeGetStorageImpl(), gradient.message);
  gradient.tensor = tensor_like(state_.tensors()[parameter], gradient.storage);
}

void GradientViews::publish(double divisor) {
  divisor_ = divisor;
  published_ = true;
  publish_generation(generation_ / 2 * 2 + 2);
  make_gradients();
  for (const auto& page : state_.layout()->pages()) {
    if (page.trainable) show_page(page.index);
  }
}

void GradientViews::show_page(int page) {
  const auto& received = reducer_.received_anywhere();
  const bool direct = points_to_sum(page);
  const bool changed = std::exchange(pages_[page].direct, direct) != direct;
  for (const auto& place : state_.layout()->pages()[page].placements) {
    auto& gradient = gradients_[place.parameter];
    if (changed) paging::link_of(gradient.storage.unsafeGetStorageImpl())->paged = !direct;
    if (changed && !direct) paging::release_storage(gradient.storage.unsafeGetStorageImpl(), gradient.message);
    if (!received[place.parameter]) continue;
    state_.tensors()[place.parameter].mutable_grad() = gradient.tensor;
    gradient.published = true;
  }
  if (direct) fill_storages(page, static_cast<std::byte*>(reducer_.gradient(page).data));
}

/// Whether the sum is itself the gradient that programs see.
bool GradientViews::points_to_sum(int page) const {
  if (divisor_ != 1.0 || !reducer_.has_whole_sum() || reducer_.on_disk(page)) return false;
  const auto sum = reducer_.gradient(page);
  return sum.data != nullptr && sum.dtype == state_.layout()->pages()[page].dtype && sum.device == device_;
}

std::unique_lock<std::mutex> GradientViews::lock() const {
  std::unique_lock<std::mutex> guard(mutex_, std::try_to_lock);
  if (!guard.owns_lock()) {
    auto blocking = enter_blocking();
    guard.lock();
  }
  return guard;
}

void GradientViews::touch(int page, bool writes, std::string_view user) {
  auto guard = lock();
  auto& state = pages_[page];
  if (!published_) {
    throw UsageError(fmt::format("{} needs {}, which were dropped when their step ended; clone() them before step()",
                                 user, state.label));
  }
  state.last_touch = ++clock_;
  state.order.enter(device_);
  if (state.frame == nullptr) {
    try {
      fill_frame(page);
    } catch (const PeerError& error) {
      throw PeerError(fmt::format("{} needs {}, which could not be gathered: {}", user, state.label, error.what()));
    } catch (const TimeoutError& error) {
      throw TimeoutError(
          fmt::format("{} needs {}, which could not be gathered: {}. Where ranks cannot read each other's memory, all "
                      "of them must touch gradients in the same order",
                      user, state.label, error.what()));
    }
  }
  ++state.pins;
  state.written |= writes;
}

void GradientViews::unpin(int page) {
  auto guard = lock();
  --pages_[page].pins;
}

void GradientViews::note_write(int page) {
  auto guard = lock();
  pages_[page].written = true;
}

void GradientViews::explain_absence(int page, const std::string& cause) {
  auto guard = lock();
  if (is_resident(page)) return;
  for (const auto& place : state_.layout()->pages()[page].placements) {
    const auto& gradient = gradients_[place.parameter];
    paging::release_storage(gradient.storage.unsafeGetStorageImpl(), gradient.message + " Cause: " + cause);
  }
}

void GradientViews::fill_frame(int page) {
  const c10::AutoGradMode no_grad(false);
  const auto& spec = state_.layout()->pages()[page];
  make_room(spec.padded_bytes());
  auto& state = pages_[page];
  state.frame = frames_->acquire(spec.padded_bytes());
  live_bytes_ += spec.padded_bytes();
  try {
    read_sums(page);
  } catch (...) {
    drop_frame(page);
    throw;
  }
  fill_storages(page, state.frame);
}

void GradientViews::read_sums(int page) {
  const auto& spec = state_.layout()->pages()[page];
  const auto& state = pages_[page];
  if (reducer_.has_whole_sum()) {
    reducer_.read_sum(page,
                      [&](const at::Tensor& sum) { put_mean(in_page(page, 0, spec.padded_numel), sum, divisor_); });
    return;
  }
  if (reducer_.peers_readable(page)) return read_peers(page);
  const std::int64_t begin = communicator_.rank() * spec.shard_numel;
  const auto mine = in_page(page, begin, spec.shard_numel);
  reducer_.read_sum(page, [&](const at::Tensor& sum) { put_mean(mine, sum, divisor_); });
  communicator_
      .all_gather(state.frame + begin * spec.element_bytes, state.frame, spec.shard_bytes(),
                  comm::Tag{state.label, page})
      ->wait();
}

void GradientViews::read_peers(int page) {
  const std::int64_t numel = state_.layout()->pages()[page].shard_numel;
  for (int rank = 0; rank < communicator_.size(); ++rank) {
    const auto* cell = generation_cell_->data();
    if (rank != communicator_.rank()) cell = communicator_.peer_address(rank, cell);
    std::atomic_ref<std::uint64_t> theirs(*reinterpret_cast<std::uint64_t*>(const_cast<std::byte*>(cell)));
    const auto ready = [&] { return theirs.load(std::memory_order_acquire) >= generation_; };
    if (!ready()) communicator_.wait_until(ready, rank, pages_[page].label);
    reducer_.read_peer_sum(page, rank,
                           [&](const at::Tensor& sum) { put_mean(in_page(page, rank * numel, numel), sum, divisor_); });
    std::atomic_thread_fence(std::memory_order_acquire);
    if (theirs.load(std::memory_order_relaxed) == generation_) continue;
    throw PeerError(fmt::format("rank {} has dropped its gradients (zero_grad) while rank {} still reads them", rank,
                                communicator_.rank()));
  }
}

/// Announces the generation to the peers.
void GradientViews::publish_generation(std::uint64_t generation) {
  generation_ = generation;
  if (!generation_cell_) return;
  std::atomic_ref<std::uint64_t>(*reinterpret_cast<std::uint64_t*>(generation_cell_->data()))
      .store(generation, std::memory_order_release);
  communicator_.notify();
}

void GradientViews::make_room(std::int64_t bytes) {
  while (live_bytes_ + bytes > max_live_bytes_) {
    int oldest = -1;
    for (std::size_t page = 0; page < pages_.size(); ++page) {
      const auto& state = pages_[page];
      if (state.frame == nullptr || state.pins > 0 || state.written) continue;
      if (oldest < 0 || state.last_touch < pages_[oldest].last_touch) oldest = static_cast<int>(page);
    }
    if (oldest < 0) return;  // the remaining frames are in use, or have been written
    drop_frame(oldest);
  }
}

void GradientViews::fill_storages(int page, std::byte* first) {
  const auto& spec = state_.layout()->pages()[page];
  for (const auto& place : spec.placements) {
    auto* storage = gradients_[place.parameter].storage.unsafeGetStorageImpl();
    std::byte* data = first + place.offset * spec.element_bytes;
    if (storage->_mutable_data_ptr_no_checks().get() != data) paging::fill_storage(storage, data);
  }
}

void GradientViews::drop_frame(int page) {
  auto& state = pages_[page];
  for (const auto& place : state_.layout()->pages()[page].placements) {
    const auto& gradient = gradients_[place.parameter];
    paging::release_storage(gradient.storage.unsafeGetStorageImpl(), gradient.message);
  }
  frames_->release(std::exchange(state.frame, nullptr), state.order.leave());
  live_bytes_ -= frame_bytes(page);
}

/// Elements of a page's frame.
at::Tensor GradientViews::in_page(int page, std::int64_t begin, std::int64_t numel) const {
  const auto& spec = state_.layout()->pages()[page];
  return memory::flat_view(pages_[page].frame + begin * spec.element_bytes, numel, scalar_type_of(spec.dtype), device_);
}

/// Whether `p.grad` is the tensor that publish() set.
bool GradientViews::is_ours(int parameter) const {
  const auto& gradient = gradients_[parameter];
  const at::Tensor& seen = state_.tensors()[parameter].mutable_grad();
  if (!gradient.published) return !seen.defined();
  return seen.unsafeGetTensorImpl() == gradient.tensor.unsafeGetTensorImpl() &&
         seen.unsafeGetTensorImpl()->unsafe_storage().unsafeGetStorageImpl() == gradient.storage.unsafeGetStorageImpl();
}

bool GradientViews::anything_changed() const {
  if (std::ranges::any_of(pages_, &Page::written)) return true;
  for (std::size_t i = 0; i < gradients_.size(); ++i) {
    if (gradients_[i].storage && !is_ours(static_cast<int>(i))) return true;
  }
  return false;
}

void GradientViews::apply_user_writes() {
  if (!published_) return;
  const c10::AutoGradMode no_grad(false);
  if (anything_changed()) {
    const comm::Tag tag{"gradients that the program has changed", 0};
    communicator_.barrier(tag);  // a peer may be reading the sums
    for (std::size_t page = 0; page < pages_.size(); ++page) {
      if (pages_[page].written) merge(static_cast<int>(page));
    }
    for (std::size_t i = 0; i < gradients_.size(); ++i) {
      const int parameter = static_cast<int>(i);
      if (gradients_[i].storage && !is_ours(parameter)) assign(parameter, state_.tensors()[i].grad());
    }
    communicator_.barrier(tag);  // and may still have to read them for gradients that its program keeps
  }
  withdraw();
}

void GradientViews::discard() {
  if (!published_) return;
  withdraw();
  publish_generation(generation_ + 1);
}

/// Adds the values written into a page to its sum.
void GradientViews::merge(int page) {
  auto& state = pages_[page];
  state.written = false;
  const auto& own = state_.owned(page);
  reducer_.edit_sum(page, [&](const at::Tensor& sum) {
    if (!state.direct) put_changed(sum, in_page(page, own.begin, own.numel), divisor_);
  });
}

/// `value`: the program's own `p.grad`; undefined: none.
void GradientViews::assign(int parameter, const at::Tensor& value) {
  const auto place = own_piece(state_, parameter);
  const at::Tensor& tensor = state_.tensors()[parameter];
  if (value.defined() && value.sizes() != tensor.sizes()) {
    throw UsageError(fmt::format("the gradient of parameter '{}' was replaced by one of another shape",
                                 state_.layout()->parameters()[parameter].name));
  }
  reducer_.edit_sum(state_.layout()->page_of(parameter), [&](const at::Tensor& sum) {
    const auto piece = sum.narrow(0, place.offset, place.numel);
    if (!value.defined()) {
      piece.zero_();
    } else {
      piece.copy_(flat_value(tensor, value, device_).narrow(0, place.parameter_offset, place.numel).mul_(divisor_));
    }
  });
  reducer_.set_received(parameter, value.defined());
}

/// Restores the state before publish(); `p.grad` is None from here on.
void GradientViews::withdraw() {
  for (std::size_t i = 0; i < gradients_.size(); ++i) {
    auto& gradient = gradients_[i];
    if (!gradient.storage) continue;
    const bool ours = is_ours(static_cast<int>(i));
    if (!ours && state_.tensors()[i].grad().defined()) comm::note_use(state_.tensors()[i].grad());
    state_.tensors()[i].mutable_grad().reset();
    // There are no other references to the tensor or its storage, so the next window reuses both.
    if (!gradient.published || (ours && gradient.tensor.use_count() == 1 && gradient.storage.use_count() == 2))
      continue;
    gradient.tensor.reset();
    if (gradient.storage.use_count() > 1) {
      hand_over(static_cast<int>(i));
    } else {
      gradient.tensor = tensor_like(state_.tensors()[i], gradient.storage);
    }
  }
  for (std::size_t page = 0; page < pages_.size(); ++page) {
    pages_[page].written = false;
    if (pages_[page].frame != nullptr) drop_frame(static_cast<int>(page));
  }
  for (auto& gradient : gradients_) gradient.published = false;
  frames_->trim();
  published_ = false;
}

/// The program keeps the tensor or a view of it, so its values move to separate memory.
void GradientViews::hand_over(int parameter) {
  const int page = state_.layout()->page_of(parameter);
  auto& gradient = gradients_[parameter];
  if (!pages_[page].direct) {
    touch(page, /*writes=*/false, "a gradient that the program keeps");
    unpin(page);
  }
  auto* storage = gradient.storage.unsafeGetStorageImpl();
  const auto bytes = static_cast<std::int64_t>(storage->nbytes());
  auto memory = memory::make_owned_buffer(bytes, device_);
  memory::copy_bytes(memory.get(), storage->_mutable_data_ptr_no_checks().get(), bytes, device_);
  storage->set_data_ptr_noswap(std::move(memory));
  make_gradient(parameter);
}

at::Tensor GradientViews::current(int parameter, const StatePiece& place, const at::Tensor& mean) const {
  const at::Tensor& tensor = state_.tensors()[parameter];
  const at::Tensor& seen = tensor.mutable_grad();
  if (!seen.defined()) return {};
  if (!is_ours(parameter)) {
    return flat_value(tensor, seen, device_).narrow(0, place.parameter_offset, place.numel);
  }
  const int page = state_.layout()->page_of(parameter);
  if (!pages_[page].written || pages_[page].direct) return mean;
  const auto shown = in_page(page, state_.owned(page).begin + place.offset, place.numel);
  return at::where(shown.eq(mean.to(shown.scalar_type())), mean, shown.to(at::kFloat));
}

void GradientViews::follow(int parameter, std::int64_t offset, const at::Tensor& flat) {
  const int page = state_.layout()->page_of(parameter);
  if (pages_[page].frame != nullptr) {
    in_page(page, state_.layout()->offset_of(parameter) + offset, flat.numel()).copy_(flat);
  }
  show_page(page);
}

}  // namespace zeropage::engine
