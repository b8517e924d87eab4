// Tensors on the device: making them, views, copies, single values.
#include <ATen/ATen.h>
#include <ATen/EmptyTensor.h>
#include <ATen/native/Resize.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/set_native.h>
#include <ATen/ops/unfold_native.h>
#include <ATen/ops/view_native.h>
#include <c10/core/DeviceGuard.h>
#include <torch/library.h>

#include <algorithm>
#include <cstring>

#include "current.h"
#include "torch_parts.h"

namespace simulated_device {
namespace {

constexpr c10::DispatchKeySet kKeys(c10::DispatchKey::PrivateUse1);

at::Device device_of(std::optional<at::Device> device) {
  const int index = device_index(device ? device->index() : c10::DeviceIndex{-1});
  return {kType, static_cast<c10::DeviceIndex>(index)};
}

at::Tensor empty(at::IntArrayRef size, std::optional<at::ScalarType> type, std::optional<at::Layout>,
                 std::optional<at::Device> device, std::optional<bool>, std::optional<at::MemoryFormat> format) {
  const c10::DeviceGuard guard(device_of(device));
  return at::detail::empty_generic(size, c10::GetAllocator(kType), kKeys, at::dtype_or_default(type), format);
}

at::Tensor empty_strided(at::IntArrayRef size, at::IntArrayRef stride, std::optional<at::ScalarType> type,
                         std::optional<at::Layout>, std::optional<at::Device> device, std::optional<bool>) {
  const c10::DeviceGuard guard(device_of(device));
  return at::detail::empty_strided_generic(size, stride, c10::GetAllocator(kType), kKeys, at::dtype_or_default(type));
}

const at::Tensor& resize(const at::Tensor& self, at::IntArrayRef size, std::optional<at::MemoryFormat> format) {
  auto* impl = self.unsafeGetTensorImpl();
  const auto bytes = at::detail::computeStorageNbytesContiguous(size, self.itemsize(), self.storage_offset());
  if (bytes > self.storage().nbytes()) resize_storage(self.storage(), bytes);
  impl->set_sizes_contiguous(size);
  if (format) impl->empty_tensor_restride(*format);
  return self;
}

at::Tensor as_strided(const at::Tensor& self, at::IntArrayRef size, at::IntArrayRef stride,
                      std::optional<std::int64_t> offset) {
  return at::native::as_strided_tensorimpl(self, size, stride, offset);
}

at::Tensor& set_storage(at::Tensor& self, at::Storage source, std::int64_t offset, at::IntArrayRef size,
                        at::IntArrayRef stride) {
  return at::native::set_storage_cpu_(self, source, offset, size, stride);
}

at::Tensor& set_tensor(at::Tensor& self, const at::Tensor& source) {
  return self.set_(source.storage(), source.storage_offset(), source.sizes(), source.strides());
}

at::Tensor& set_empty(at::Tensor& self) {
  const c10::DeviceGuard guard(self.device());
  return self.set_(at::Storage(c10::Storage::use_byte_size_t(), 0, c10::GetAllocator(kType), true), 0, {0}, {});
}

/// Between tensors of one device, or of two.
void copy_on_device(const at::Tensor& from, const at::Tensor& to) {
  auto& stream = current_stream(from.device().index());
  auto& other = current_stream(to.device().index());
  if (&other != &stream) Machine::get().block(stream, Machine::get().record(other));
  const auto source = inside_view(from, from.device().index());
  const auto target = inside_view(to, to.device().index());
  Machine::get().launch(stream, "copy on the device", {use_of(from, false), use_of(to, true)},
                        [source, target] { target.copy_(source); });
  if (&other != &stream) Machine::get().block(other, Machine::get().record(stream));
}

/// A tensor on the CPU for a task: page-locked memory by its private address, else the tensor itself.
at::Tensor host_tensor(const at::Tensor& tensor, int device) {
  return Machine::get().pinned().contains(tensor.const_data_ptr()) ? inside_view(tensor, device) : tensor;
}

void note_pinned(const at::Tensor& host, Stream& stream) {
  auto& pinned = Machine::get().pinned();
  if (!pinned.note_use(host.const_data_ptr(), stream)) pinned.note_use(host.storage().data_ptr().get_context(), stream);
}

void copy_to_host(const at::Tensor& from, const at::Tensor& to, bool non_blocking) {
  const int device = from.device().index();
  auto& stream = current_stream(device);
  const bool pinned = Machine::get().pinned().contains(to.const_data_ptr());
  const auto source = inside_view(from, device);
  const auto target = host_tensor(to, device);
  std::vector<Use> uses{use_of(from, false)};
  if (pinned) uses.push_back(use_of(to, true));
  Machine::get().launch(stream, "copy to the host", uses, [source, target] { target.copy_(source); });
  if (pinned && non_blocking) return note_pinned(to, stream);
  Machine::get().wait(Machine::get().record(stream), &Counters::fetches);
}

void copy_from_host(const at::Tensor& from, const at::Tensor& to, bool non_blocking) {
  const int device = to.device().index();
  auto& stream = current_stream(device);
  const bool pinned = Machine::get().pinned().contains(from.const_data_ptr());
  // Memory that is not page-locked is read before the call returns.
  const auto source = pinned ? host_tensor(from, device) : from.clone();
  const auto target = inside_view(to, device);
  std::vector<Use> uses{use_of(to, true)};
  if (pinned) uses.push_back(use_of(from, false));
  Machine::get().launch(stream, "copy from the host", uses, [source, target] { target.copy_(source); });
  if (pinned && non_blocking) return note_pinned(from, stream);
  // A GPU's library may also wait if it need not block: it copies memory that is not page-locked when the stream is
  // idle.
  Machine::get().wait(Machine::get().record(stream), &Counters::uploads);
}

at::Tensor copy_from(const at::Tensor& self, const at::Tensor& target, bool non_blocking) {
  Machine::get().rethrow();
  const auto from = self.sizes() == target.sizes() ? self : self.expand(target.sizes());
  if (target.numel() == 0) return target;
  if (from.device().type() == kType && target.device().type() == kType) {
    copy_on_device(from, target);
  } else if (from.is_cpu()) {
    copy_from_host(from, target, non_blocking);
  } else {
    TORCH_CHECK(target.is_cpu(), "simulated device: no copy from ", from.device(), " to ", target.device());
    copy_to_host(from, target, non_blocking);
  }
  return target;
}

at::Tensor copy_from_and_resize(const at::Tensor& self, const at::Tensor& target) {
  if (target.sizes() != self.sizes()) target.resize_(self.sizes());
  return copy_from(self, target, false);
}

at::Scalar local_scalar(const at::Tensor& self) {
  const auto value = at::empty({}, self.options().device(at::kCPU));
  copy_to_host(self, value, false);
  return value.item();
}

void record_stream(at::Tensor& self, c10::Stream stream) {
  c10::impl::getDeviceGuardImpl(kType)->recordDataPtrOnStream(self.storage().data_ptr(), stream);
}

/// As on the devices that torch has names for: `p.data = x` where the two differ in keys of other kinds.
bool may_exchange_data(const at::Tensor& self, const at::Tensor& from) {
  return from.device().type() == kType && self.layout() == from.layout();
}

}  // namespace

void resize_storage(const c10::Storage& storage, std::size_t bytes) {
  auto* impl = storage.unsafeGetStorageImpl();
  const c10::DeviceGuard guard(impl->device());
  auto grown = c10::GetAllocator(kType)->allocate(bytes);
  const std::size_t kept = std::min(bytes, impl->nbytes());
  if (kept > 0) {
    auto& stream = current_stream(impl->device().index());
    const void* source = Machine::get().inside(impl->data(), stream.device);
    void* target = Machine::get().inside(grown.get(), stream.device);
    const auto count = static_cast<std::int64_t>(kept);
    Machine::get().launch(stream, "resize", {{impl->data(), kept, count, false}, {grown.get(), kept, count, true}},
                          [=] { std::memcpy(target, source, kept); });
  }
  impl->set_data_ptr_noswap(std::move(grown));
  impl->set_nbytes(bytes);
}

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("empty.memory_format", TORCH_FN(empty));
  m.impl("empty_strided", TORCH_FN(empty_strided));
  m.impl("resize_", TORCH_FN(resize));
  m.impl("as_strided", TORCH_FN(as_strided));
  m.impl("view", TORCH_FN(at::native::view));
  m.impl("_reshape_alias", TORCH_FN(at::native::_reshape_alias));
  m.impl("unfold", TORCH_FN(at::native::unfold));
  m.impl("set_.source_Storage_storage_offset", TORCH_FN(set_storage));
  m.impl("set_.source_Tensor", TORCH_FN(set_tensor));
  m.impl("set_", TORCH_FN(set_empty));
  m.impl("_copy_from", TORCH_FN(copy_from));
  m.impl("_copy_from_and_resize", TORCH_FN(copy_from_and_resize));
  m.impl("_local_scalar_dense", TORCH_FN(local_scalar));
  m.impl("record_stream", TORCH_FN(record_stream));
  m.impl("_has_compatible_shallow_copy_type", TORCH_FN(may_exchange_data));
}

}  // namespace simulated_device
