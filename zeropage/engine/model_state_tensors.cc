// The user's tensors: their initial values and their new storages.
#include <c10/core/GradMode.h>
#include <c10/core/TensorImpl.h>
#include <fmt/format.h>

#include "zeropage/engine/model_state.h"
#include "zeropage/paging/device_wait.h"
#include "zeropage/paging/exact_read.h"

namespace zeropage::engine {
namespace {

/// A tensor with the storage of a parameter's home; without access to data, so the home may be absent.
at::Tensor tensor_over(const c10::Storage& storage, at::ScalarType type, c10::Device device, at::IntArrayRef sizes,
                       at::IntArrayRef strides) {
  const auto keys = c10::DispatchKeySet(c10::computeDispatchKey(type, c10::kStrided, device));
  auto tensor = at::detail::make_tensor<c10::TensorImpl>(c10::Storage(storage), keys, c10::scalarTypeToTypeMeta(type));
  tensor.unsafeGetTensorImpl()->set_sizes_and_strides(sizes, strides);
  return tensor;
}

}  // namespace

at::Tensor ModelState::place_of(int parameter, void* page_start, at::ScalarType type) const {
  auto* start = static_cast<std::byte*>(page_start) +
                layout_->offset_of(parameter) * static_cast<std::int64_t>(c10::elementSize(type));
  return memory::view_of(start, tensors_[parameter].sizes(), strides_[parameter], type, device_);
}

void ModelState::fill_page(const layout::Page& page, void* staging) {
  const bool floating = page.dtype != DType::kOther;
  const std::int64_t staged_bytes = page.padded_numel * (floating ? 4 : page.element_bytes);
  memory::zero_bytes(staging, staged_bytes, device_);
  for (const auto& place : page.placements) {
    const auto type = floating ? at::kFloat : tensors_[place.parameter].scalar_type();
    const paging::ExactRead read(tensors_[place.parameter]);  // for parameters of an engine that has ended
    place_of(place.parameter, staging, type).copy_(tensors_[place.parameter].detach());
  }
  communicator_->job().broadcast(staging, staged_bytes, 0, comm::Tag{"initial values", page.index})->wait();
  // Wherever they go, some of them pass through host memory that is not page-locked.
  paging::wait_for_stream(device_, *communicator_, "initial values");

  const auto& own = owned_[page.index];
  const HeldParameter held(*this, page.index, Access::kWrite, io::Fill::kZeros);
  if (!floating) {
    const std::int64_t from = pager_->paged(page.index) ? own.begin * page.element_bytes : 0;
    std::byte* target = pager_->paged(page.index) ? held.data() : whole_[page.index];
    const std::int64_t bytes = pager_->paged(page.index) ? page.shard_bytes() : page.padded_bytes();
    memory::copy_bytes(target, own.device, static_cast<std::byte*>(staging) + from, device_, bytes);
    return;
  }
  auto values = memory::flat_view(staging, page.padded_numel, at::kFloat, device_);
  const auto own_values = values.narrow(0, own.begin, own.numel);
  const auto type = scalar_type_of(page.dtype);
  if (pager_->paged(page.index)) {
    memory::flat_view(held.data(), page.shard_numel, type, own.device)
        .copy_(values.narrow(0, communicator_->rank() * page.shard_numel, page.shard_numel));
  } else {
    memory::flat_view(whole_[page.index], page.padded_numel, type, device_).copy_(values);
  }
  if (page.trainable) fill_state(page, own_values);
}

/// `values` [owned numel, fp32]: the initial values of the masters.
void ModelState::fill_state(const layout::Page& page, const at::Tensor& values) {
  const double start = config_.optimizer.params.initial_accumulator_value;
  if (!has_masters(page.index) && start == 0.0) return;
  HeldState held(*state_store_, page.index, Access::kWrite);
  const auto view = [&](float* data) { return memory::flat_view(data, values.numel(), at::kFloat, held.device()); };
  if (has_masters(page.index)) view(held.arrays().master).copy_(values);
  if (start == 0.0) return;
  if (held.arrays().is_wide(0)) {
    view(held.arrays().states[0]).fill_(start);
    return;
  }
  const auto& own = owned_[page.index];
  for (const auto& piece : pieces_of(*layout_, page.index, own.begin, own.begin + own.numel)) {
    const std::vector<float> values_of_piece(static_cast<std::size_t>(piece.numel), static_cast<float>(start));
    held.write(0, piece, values_of_piece.data(), 0);
  }
}

bool ModelState::needs_mark(int page) const {
  // Unsharded 16-bit pages are observed only for writes, which their fp32 masters must follow.
  return pager_->paged(page) || (layout_->pages()[page].trainable && has_masters(page));
}

void ModelState::rehome(const layout::Page& page) {
  const bool paged = pager_->paged(page.index);
  for (const auto& place : page.placements) {
    const std::int64_t offset_bytes = place.offset * page.element_bytes;
    const std::int64_t bytes = place.numel * page.element_bytes;
    void* data = paged ? nullptr : whole_[page.index] + offset_bytes;
    storages_[place.parameter] = paging::make_linked_storage(
        pager_->make_link(page.index, paged ? nullptr : whole_owner(page.index)), data, bytes, device_);
    if (paged) {
      pager_->adopt(
          page.index, offset_bytes, storages_[place.parameter],
          paging::not_resident_message(fmt::format("parameter '{}'", layout_->parameters()[place.parameter].name),
                                       "engine.gathered", ", which makes it resident for the scope."));
    }
    tensors_[place.parameter].mutable_grad().reset();
    attach(place.parameter);
  }
}

void ModelState::attach(int parameter) {
  const auto& page = layout_->pages()[layout_->page_of(parameter)];
  at::Tensor& tensor = tensors_[parameter];
  const auto type = page.dtype == DType::kOther ? tensor.scalar_type() : scalar_type_of(page.dtype);
  tensor.set_data(tensor_over(storages_[parameter], type, device_, tensor.sizes(), strides_[parameter]));
  if (needs_mark(page.index)) paging::mark(tensor);
}

void ModelState::make_whole() {
  c10::AutoGradMode no_grad(false);
  adopt_replaced_data();
  for (std::size_t i = 0; i < tensors_.size(); ++i) {
    if (!pager_->paged(layout_->page_of(static_cast<int>(i)))) continue;
    const paging::ExactRead read(tensors_[i]);
    tensors_[i].set_data(tensors_[i].detach().clone());
  }
}

void ModelState::leave_parameters() {
  for (std::size_t i = 0; i < tensors_.size(); ++i) {
    c10::StorageImpl* storage = storages_[i].unsafeGetStorageImpl();
    auto* link = paging::link_of(storage);
    const at::Tensor& tensor = tensors_[i];
    const bool is_home =
        tensor.defined() && tensor.unsafeGetTensorImpl()->unsafe_storage().unsafeGetStorageImpl() == storage;
    if (link != nullptr && link->paged) {
      link->memory = pager_;
    } else if (is_home) {  // otherwise another engine may have adopted it
      paging::unmark(tensor);
    }
  }
  pager_->end_engine();
}

}  // namespace zeropage::engine
