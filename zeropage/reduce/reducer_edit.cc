// Reading and changing complete sums, between a backward and the step.
#include <optional>
#include <utility>

#include "zeropage/reduce/reducer.h"

namespace zeropage::reduce {

void Reducer::read_sum(int page, const std::function<void(const at::Tensor& sum)>& read) {
  pages_[page].order.enter(device_);
  require_one_piece(page);
  const auto& state = pages_[page];
  std::optional<io::HeldPage> held;
  if (on_disk(page)) held.emplace(*policy_.disk, page, /*changes=*/false);
  read(sum_view(page, held ? held->data() : state.result));
}

void Reducer::read_peer_sum(int page, int rank, const std::function<void(const at::Tensor& sum)>& read) const {
  const auto& state = pages_[page];
  const std::int64_t numel = layout_->pages()[page].shard_numel;
  // Shards of sharded pages are at the same offset in all ranks' memories; those of whole pages are consecutive.
  const std::int64_t apart = policy_.sharded || state.result_at_start ? 0 : numel * element_bytes(state.result_dtype);
  const std::byte* here = state.result + (rank - communicator_->rank()) * apart;
  const auto* data = rank == communicator_->rank() ? here : communicator_->peer_address(rank, here);
  read(memory::flat_view(const_cast<std::byte*>(data), numel, scalar_type_of(state.result_dtype), state.result_device));
}

void Reducer::edit_sum(int page, const std::function<void(const at::Tensor& sum)>& edit) {
  retire(0);
  auto& state = pages_[page];
  invalidate_sum(page);
  state.order.enter(device_);
  require_one_piece(page);
  if (!state.has_sum() && !policy_.sharded) {
    state.result = policy_.whole_result ? frames_->home(page) : own_shard(page);
    state.result_at_start = policy_.whole_result;
    state.result_dtype = frame_dtype(page);
    state.frame = nullptr;
  }
  std::optional<io::HeldPage> held;
  if (on_disk(page)) {
    held.emplace(*policy_.disk, page, /*changes=*/true, state.has_sum() ? io::Fill::kRead : io::Fill::kZeros);
  }
  const at::Tensor sum = sum_view(page, held ? held->data() : state.result);
  if (!state.has_sum()) {
    move_to(page, SumState::kInvalidated);
    sum.zero_();
  }
  edit(sum);
  square_again(page, sum);
  held.reset();
  complete(page);
}

/// Moves gradients from autograd's tensors to a shard.
void Reducer::require_one_piece(int page) {
  if (!pages_[page].keeps) return;
  gather_kept(page);
  if (pages_[page].has_sum()) square_again(page, sum_view(page, pages_[page].result));
}

/// `sum`: this rank's part of the page's sum, as from sum_view. If it is on a device, `finish` squares it.
void Reducer::square_again(int page, const at::Tensor& sum) {
  norms_.forget(page);
  if (!pages_[page].result_device.is_cpu()) return;
  const std::int64_t shard = layout_->pages()[page].shard_numel;
  const at::Tensor own = sum.numel() == shard ? sum : sum.narrow(0, communicator_->rank() * shard, shard);
  norms_.add(page, static_cast<const std::byte*>(own.const_data_ptr()), pages_[page].result_dtype, 0, shard);
}

/// This rank's part of the sum, which is at `data`.
at::Tensor Reducer::sum_view(int page, std::byte* data) const {
  const auto& state = pages_[page];
  const auto& spec = layout_->pages()[page];
  const bool whole = !policy_.sharded && policy_.whole_result;
  return memory::flat_view(data, whole ? spec.padded_numel : spec.shard_numel, scalar_type_of(state.result_dtype),
                           state.result_device);
}

void Reducer::set_received(int parameter, bool received) {
  received_since_reset_[parameter] = received;
  received_anywhere_[parameter] = received;
  anything_arrived_ |= received;
}

}  // namespace zeropage::reduce
