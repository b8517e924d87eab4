// The reduction of one page, depending on the place of its sum and on the types of its frame, its sum and its transfer.
#include <memory>
#include <optional>
#include <utility>

#include "zeropage/paging/device_wait.h"
#include "zeropage/paging/pager.h"
#include "zeropage/reduce/pieces.h"
#include "zeropage/reduce/reducer.h"

namespace zeropage::reduce {

void Reducer::start_reduction(int page) {
  auto& state = pages_[page];
  // A second reduction of a page begins when the first is complete.
  if (state.sum == SumState::kReducing) retire(0);
  invalidate_sum(page);
  if (!state.keeps) acquire_frame(page);
  const bool adds = move_to(page, SumState::kReducing) != SumState::kNone;  // to an existing sum
  complete_frame(page);
  state.order.enter(device_);
  std::byte* frame = std::exchange(state.frame, nullptr);
  const bool done = state.keeps       ? start_kept_reduction(page)
                    : policy_.sharded ? start_sharded_reduction(page, frame, adds)
                                      : start_whole_reduction(page, frame, adds);
  if (done) complete(page);
  // All ranks have started the same collective, and the rest of this backward follows from their common order.
  start_unchecked();
  if (!policy_.overlap) retire(0);
}

/// Zeros the gaps of the frame: a block's scale must not depend on undefined values.
void Reducer::zero_gaps(int page) {
  const auto& spec = layout_->pages()[page];
  const std::int64_t element = element_bytes(frame_dtype(page));
  std::int64_t end = 0;  // of the previous parameter
  const auto zero_until = [&](std::int64_t begin) {
    if (begin > end) memory::zero_bytes(pages_[page].frame + end * element, (begin - end) * element, device_);
  };
  for (const auto& place : spec.placements) {
    zero_until(place.offset);
    end = place.offset + place.numel;
  }
  zero_until(spec.padded_numel);
}

/// `frame`: [padded_numel, sent_dtype]. True: the sum is complete.
bool Reducer::start_sharded_reduction(int page, std::byte* frame, bool adds) {
  auto& state = pages_[page];
  const auto& spec = layout_->pages()[page];
  const comm::Tag tag{state.label, page};
  const DType dtype = sent_dtype(page);
  if (policy_.reduce_scatter && reduces_into_shard(page)) {
    in_flight_.push_back(
        {page,
         communicator_->reduce_scatter(frame, state.result, spec.shard_numel, dtype, DType::kFloat32,
                                       /*accumulate=*/adds, tag, norms_.watch(page, state.result, DType::kFloat32)),
         [this, frame] { frames_->release(frame, paging::event_after_current_work(device_)); }});
    return false;
  }
  std::byte* summed = frame + communicator_->rank() * spec.shard_numel * element_bytes(dtype);
  DType summed_dtype = dtype;
  if (communicator_->size() == 1) {
    // The frame is the sum.
  } else if (!policy_.reduce_scatter) {
    communicator_->all_reduce(frame, spec.padded_numel, dtype, tag, {})->wait();
  } else {
    summed = scratch_->data();
    summed_dtype = DType::kFloat32;
    scratch_order_.enter(device_);
    communicator_->reduce_scatter(frame, summed, spec.shard_numel, dtype, summed_dtype, false, tag, {})->wait();
  }
  const at::Tensor sum = memory::flat_view(summed, spec.shard_numel, scalar_type_of(summed_dtype), device_);
  if (!is_sent_to_host(page)) {
    add_to_shard(page, sum, adds);
    frames_->release(frame, paging::event_after_current_work(device_));
    return true;
  }
  send(page, sum, adds);
  if (summed != frame && policy_.reduce_scatter && communicator_->size() > 1) scratch_order_.filled_on(*send_stream_);
  frames_->release(frame, event_after_sends());
  return false;
}

/// Copies a page's sum [shard_numel] to its shard, or adds it there, within one memory or to a drive.
void Reducer::add_to_shard(int page, const at::Tensor& sum, bool adds) {
  const auto& state = pages_[page];
  std::optional<io::HeldPage> held;
  if (on_disk(page)) {
    held.emplace(*policy_.disk, page, /*changes=*/true, adds ? io::Fill::kRead : io::Fill::kZeros);
  }
  // Copies to memory that is not page-locked make the host wait in the device's library.
  if (held) paging::wait_for_stream(device_, *communicator_, "the copy of gradients to the drive");
  std::byte* data = held ? held->data() : state.result;
  auto shard = memory::flat_view(data, sum.numel(), scalar_type_of(state.result_dtype), state.result_device);
  const bool squared = policy_.squares_before_copy && policy_.offloaded[page] && !adds && !held;
  if (squared) square_before_copy(page, sum.to(scalar_type_of(state.result_dtype)));
  const bool seen = held || (state.result_device.is_cpu() && !squared);
  const auto on_reduced = seen ? norms_.watch(page, data, state.result_dtype) : comm::OnReduced();
  const at::Tensor from = adds ? sum.to(state.result_device) : sum;
  in_pieces(sum.numel(), on_reduced, [&](std::int64_t begin, std::int64_t numel) {
    auto to = shard.narrow(0, begin, numel);
    const auto piece = from.narrow(0, begin, numel);
    adds ? to.add_(piece) : to.copy_(piece);
  });
}

/// `frame`: [padded_numel, frame_dtype]. True: the sum is complete.
bool Reducer::start_whole_reduction(int page, std::byte* frame, bool adds) {
  auto& state = pages_[page];
  const auto& spec = layout_->pages()[page];
  if (adds) return reduce_through_fp32(page, frame, /*adds=*/true);
  const DType dtype = frame_dtype(page);
  state.result = policy_.whole_result ? frame : own_shard(page);
  state.result_at_start = policy_.whole_result;
  state.result_dtype = dtype;
  if (communicator_->size() == 1) {
    if (stores_sums()) norms_.complete(page);  // reported by write_to_frame
    return true;
  }
  if (dtype != sent_dtype(page) || (dtype != DType::kFloat32 && !policy_.whole_result)) {
    return reduce_through_fp32(page, frame, /*adds=*/false);
  }
  const comm::Tag tag{state.label, page};
  if (!communicator_->one_sided())
    retire_reductions(kMaxInFlight);  // with one-sided communicators, reductions in place need no memory
  auto on_reduced = norms_.watch(page, own_shard(page), dtype);
  in_flight_.push_back({page,
                        policy_.whole_result || !policy_.reduce_scatter
                            ? communicator_->all_reduce(frame, spec.padded_numel, dtype, tag, std::move(on_reduced))
                            : communicator_->reduce_scatter(frame, own_shard(page), spec.shard_numel, dtype, dtype,
                                                            /*accumulate=*/false, tag, std::move(on_reduced)),
                        {}});
  return false;
}

/// Reduces `frame` [padded_numel, frame_dtype], which may be sent in another type, into fp32; then stores the sum, or
/// adds it to the page's. If all ranks need the whole sum, it is gathered immediately: a gather started when this rank
/// finds the sum complete would be at different positions in the ranks' sequences.
bool Reducer::reduce_through_fp32(int page, std::byte* frame, bool adds) {
  auto& state = pages_[page];
  const auto& spec = layout_->pages()[page];
  const comm::Tag tag{state.label, page};
  const DType dtype = frame_dtype(page);
  const auto buffer = [&](std::int64_t bytes) {
    return std::make_shared<memory::DeviceBuffer>(bytes, device_, ledger_, MemoryKind::kBuffers);
  };
  std::shared_ptr<memory::DeviceBuffer> converted;
  if (sent_dtype(page) != dtype) {
    converted = buffer(spec.padded_numel * element_bytes(sent_dtype(page)));
    memory::flat_view(converted->data(), spec.padded_numel, scalar_type_of(sent_dtype(page)), device_)
        .copy_(memory::flat_view(frame, spec.padded_numel, scalar_type_of(dtype), device_));
  }
  const auto sum = buffer(4 * spec.shard_numel);
  // The frame is free when all ranks have read it; with two or more ranks it has room for the fp32 sum of one shard.
  if (!adds && !policy_.whole_result) {
    state.result = frame;
    state.result_at_start = true;
    state.result_dtype = DType::kFloat32;
  }
  std::byte* target = policy_.whole_result ? own_shard(page) : state.result;
  retire_reductions(kMaxInFlight);
  auto work = communicator_->reduce_scatter(converted ? converted->data() : frame, sum->data(), spec.shard_numel,
                                            sent_dtype(page), DType::kFloat32, /*accumulate=*/false, tag, {});
  const auto on_reduced = device_.is_cpu() ? norms_.watch(page, target, state.result_dtype) : comm::OnReduced();
  auto settle = [=, this, target_type = scalar_type_of(state.result_dtype), keep = converted] {
    const auto from = memory::flat_view(sum->data(), spec.shard_numel, at::kFloat, device_);
    auto to = memory::flat_view(target, spec.shard_numel, target_type, device_);
    in_pieces(spec.shard_numel, on_reduced, [&](std::int64_t begin, std::int64_t numel) {
      auto piece = to.narrow(0, begin, numel);
      adds ? piece.add_(from.narrow(0, begin, numel)) : piece.copy_(from.narrow(0, begin, numel));
    });
    if (adds) frames_->release(frame, paging::event_after_current_work(device_));
  };
  const bool complete_here = policy_.whole_result;
  in_flight_.push_back({complete_here ? kNoPage : page, std::move(work), std::move(settle)});
  if (!complete_here) return false;
  retire(0);
  communicator_->all_gather(target, frames_->home(page), spec.shard_numel * element_bytes(dtype), tag)->wait();
  return true;
}

std::byte* Reducer::own_shard(int page) const {
  return frames_->home(page) +
         communicator_->rank() * layout_->pages()[page].shard_numel * element_bytes(frame_dtype(page));
}

}  // namespace zeropage::reduce
