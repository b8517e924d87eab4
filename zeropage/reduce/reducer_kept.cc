// Gradients that stay in autograd's tensors; see ReducePolicy::keep.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty_strided.h>

#include <utility>

#include "zeropage/comm/c10d/c10d_buffers.h"
#include "zeropage/reduce/reducer.h"

namespace zeropage::reduce {

/// False: this page does not keep, or no longer does.
bool Reducer::keep(int parameter, const at::Tensor& gradient) {
  const int page = layout_->page_of(parameter);
  if (!pages_[page].keeps) return false;
  if (kept_[parameter].defined()) {
    gather_kept(page);
    return false;
  }
  const at::Tensor& variable = parameters_[parameter];
  const auto type = scalar_type_of(frame_dtype(page));
  at::Tensor own = gradient.detach();
  // The elements need the parameter's order, in which the update reads them.
  if (own.scalar_type() != type || own.strides() != variable.strides() || own.device() != device_) {
    own = at::empty_strided(variable.sizes(), variable.strides(), at::TensorOptions().dtype(type).device(device_));
    own.copy_(gradient);
  }
  if (device_.is_cpu()) {
    const auto on_reduced =
        norms_.watch_parameter(parameter, static_cast<const std::byte*>(own.const_data_ptr()), frame_dtype(page));
    if (on_reduced) on_reduced(0, own.numel());
  }
  ledger_->add(MemoryKind::kGradients, static_cast<std::int64_t>(own.nbytes()));
  kept_[parameter] = std::move(own);
  return true;
}

/// True: the sum is complete.
bool Reducer::start_kept_reduction(int page) {
  auto& state = pages_[page];
  state.result_dtype = frame_dtype(page);
  norms_.complete(page);  // reported by keep; without a gradient there are no squares
  return true;
}

/// The page does not keep until the next sum: reduced gradients are in a shard from now on, waiting ones in a frame.
void Reducer::gather_kept(int page) {
  auto& state = pages_[page];
  if (!std::exchange(state.keeps, false)) return;
  const auto& spec = layout_->pages()[page];
  state.result_dtype = sum_dtype(page);
  gathered_[page] = std::make_unique<memory::DeviceBuffer>(spec.shard_numel * element_bytes(state.result_dtype),
                                                           device_, ledger_, MemoryKind::kGradients);
  state.result = gathered_[page]->data();
  for (const auto& place : spec.placements) {
    const at::Tensor gradient = std::exchange(kept_[place.parameter], at::Tensor());
    if (!gradient.defined()) continue;
    ledger_->add(MemoryKind::kGradients, -static_cast<std::int64_t>(gradient.nbytes()));
    comm::note_use(gradient);  // it was written on the backward's stream, and is read on this one
    if (in_frame_[place.parameter]) {
      acquire_frame(page);
      write_to_frame(place.parameter, gradient, /*first=*/true, /*scale=*/1.0f);
    } else {
      auto* target = state.result + place.offset * element_bytes(state.result_dtype);
      memory::view_of(target, gradient.sizes(), gradient.strides(), scalar_type_of(state.result_dtype), device_)
          .copy_(gradient);
    }
  }
  norms_.forget(page);
}

void Reducer::forget_kept(int page) {
  auto& state = pages_[page];
  if (!policy_.may_keep(page)) return;
  state.keeps = true;
  state.result = nullptr;
  gathered_[page].reset();
  for (const auto& place : layout_->pages()[page].placements) {
    if (!kept_[place.parameter].defined()) continue;
    ledger_->add(MemoryKind::kGradients, -static_cast<std::int64_t>(kept_[place.parameter].nbytes()));
    kept_[place.parameter].reset();
  }
}

}  // namespace zeropage::reduce
