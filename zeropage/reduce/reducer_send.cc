// Copies sums from their device to the host: on a separate stream, in their own type.
//
//   1. A first sum is copied to the memory of its shard. If the shard's type is wider, the sum is at the end of that
//      memory, and the shard temporarily has the sum's type.
//   2. Later sums are copied to one of two buffers of page-locked memory, and added to the shard when they have
//      arrived: the shard gets the type of sums then.
//   3. `retire` also handles arrivals. Only the end of a backward before a step waits for them.
#include <ATen/core/Tensor.h>
#include <c10/core/StreamGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <algorithm>
#include <memory>
#include <utility>

#include "zeropage/comm/c10d/c10d_buffers.h"
#include "zeropage/paging/device_wait.h"
#include "zeropage/paging/polled_copy.h"
#include "zeropage/reduce/pieces.h"
#include "zeropage/reduce/reducer.h"

namespace zeropage::reduce {
namespace {

class CopyWork final : public comm::Work {
 public:
  CopyWork(c10::Event copied, comm::Communicator& communicator)
      : copied_(std::move(copied)), communicator_(communicator) {}
  bool poll() override { return copied_.query(); }
  void wait() override { paging::wait_for(copied_, communicator_, "the copy of gradients to the host"); }

 private:
  c10::Event copied_;
  comm::Communicator& communicator_;
};

}  // namespace

bool Reducer::is_sent_to_host(int page) const { return policy_.offloaded[page] && !on_disk(page) && !device_.is_cpu(); }

std::optional<c10::Event> Reducer::event_after_sends() const {
  const c10::StreamGuard guard(*send_stream_);
  return paging::event_after_current_work(device_);
}

/// Starts to copy `sum` [shard_numel] to the host, where it becomes the shard or, if it `adds`, is added to it. `page`
/// is complete when the last of in_flight_ is. The memory of `sum` may be used again after event_after_sends().
void Reducer::send(int page, const at::Tensor& sum, bool adds) {
  auto& state = pages_[page];
  const auto wide = scalar_type_of(sum_dtype(page));
  const bool as_it_is = sum.scalar_type() == wide || wide == at::kFloat || adds;
  const at::Tensor sent = as_it_is ? sum : sum.to(wide);
  const auto type = dtype_of(sent.scalar_type());
  const auto numel = sent.numel();
  std::byte* target = shards_.data(page) + numel * (element_bytes(sum_dtype(page)) - element_bytes(type));
  std::function<void()> settle;
  if (adds) {
    auto& slot = next_slot();
    target = slot.memory->data();
    slot.busy = true;
    settle = [this, page, &slot, type] {
      add_on_host(page, slot.memory->data(), type);
      slot.busy = false;
    };
  } else {
    state.result = target;
    state.result_dtype = type;
  }
  paging::event_after_current_work(device_)->block(*send_stream_);
  const c10::StreamGuard guard(*send_stream_);
  paging::start_polled_copy(target, policy_.host.device, sent.const_data_ptr(), device_, numel * element_bytes(type),
                            *communicator_, "the copy of gradients to the host");
  in_flight_.push_back({page, std::make_unique<CopyWork>(*paging::event_after_current_work(device_), *communicator_),
                        std::move(settle), /*arrives=*/true});
  if (boundary_ && !adds) square_before_copy(page, sent);
  if (!as_it_is) comm::note_use(sent);
}

/// The other buffer, after its sum was added.
Reducer::Slot& Reducer::next_slot() {
  auto& slot = slots_[next_slot_++ % slots_.size()];
  while (slot.busy) retire(in_flight_.size() - 1);
  if (!slot.memory) {
    std::int64_t bytes = 0;
    for (const int page : order_.pages()) {
      if (is_sent_to_host(page)) bytes = std::max(bytes, 4 * layout_->pages()[page].shard_numel);
    }
    slot.memory = std::make_unique<memory::DeviceBuffer>(bytes, policy_.host, ledger_, MemoryKind::kBuffers);
  }
  return slot;
}

void Reducer::add_on_host(int page, std::byte* values, DType type) {
  auto& state = pages_[page];
  const std::int64_t numel = layout_->pages()[page].shard_numel;
  const auto view = [](std::byte* data, std::int64_t numel, DType dtype) {
    return memory::flat_view(data, numel, scalar_type_of(dtype), c10::Device(c10::kCPU));
  };
  const at::Tensor shard = view(shards_.data(page), numel, sum_dtype(page));
  if (state.result_dtype != sum_dtype(page)) {
    // Converts in place, from the beginning: a piece is read before its memory, or that of a later piece, is written.
    const at::Tensor narrow = view(state.result, numel, state.result_dtype);
    in_pieces(
        numel, [](std::int64_t, std::int64_t) {},
        [&](std::int64_t begin, std::int64_t count) {
          shard.narrow(0, begin, count).copy_(narrow.narrow(0, begin, count).clone());
        });
    state.result = shards_.data(page);
    state.result_dtype = sum_dtype(page);
  }
  const at::Tensor added = view(values, numel, type);
  in_pieces(numel, norms_.watch(page, state.result, state.result_dtype), [&](std::int64_t begin, std::int64_t count) {
    shard.narrow(0, begin, count).add_(added.narrow(0, begin, count));
  });
}

/// Waits until at most `keep` reductions are in progress, not counting copies to the host.
void Reducer::retire_reductions(std::size_t keep) {
  const auto reductions = [this] {
    return static_cast<std::size_t>(std::ranges::count(in_flight_, false, &InFlight::arrives));
  };
  while (reductions() > keep) retire(in_flight_.size() - 1);
}

}  // namespace zeropage::reduce
