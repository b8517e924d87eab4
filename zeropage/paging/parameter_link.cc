#include "zeropage/paging/parameter_link.h"

#include <c10/core/CPUAllocator.h>
#include <torch/version.h>

namespace zeropage::paging {
namespace {

#if TORCH_VERSION_MAJOR == 2 && TORCH_VERSION_MINOR < 12
// torch 2.11 has no function that removes the access guard of a storage. Its flag is private; an explicit instantiation may
// name private members, and the friend function that it defines gives access to them.
void clear_guard(c10::StorageImpl* storage);
template <auto ThrowFlag, auto RefreshChecks>
struct GuardAccess {
  friend void clear_guard(c10::StorageImpl* storage) {
    storage->*ThrowFlag = false;
    storage->get_extra_meta().custom_data_ptr_error_msg_ = std::nullopt;
    (storage->*RefreshChecks)();
  }
};
template struct GuardAccess<&c10::StorageImpl::throw_on_immutable_data_ptr_,
                            &c10::StorageImpl::refresh_has_data_ptr_check>;
#else
void clear_guard(c10::StorageImpl* storage) { storage->clear_data_ptr_access_error_msg_(); }
#endif

void delete_link(void* context) { delete static_cast<ParameterLink*>(context); }

// The key set is protected in TensorImpl; naming the member through a derived class is the legal way to it.
struct KeySetAccess : c10::TensorImpl {
  static c10::DispatchKeySet& of(c10::TensorImpl* tensor) { return tensor->*(&KeySetAccess::key_set_); }
};

void set_address(c10::StorageImpl* storage, void* data) {
  at::DataPtr& old = storage->_mutable_data_ptr_no_checks();
  if (old.get_deleter() != &delete_link) return;  // the user gave the storage other memory (share_memory_)
  const c10::Device device = old.device();
  void* context = old.release_context();
  storage->set_data_ptr_noswap(at::DataPtr(data, context, &delete_link, device));
}

}  // namespace

void mark(const at::Tensor& tensor) {
  auto& keys = KeySetAccess::of(tensor.unsafeGetTensorImpl());
  keys = keys.add(kParameterKey);
}

void unmark(const at::Tensor& tensor) {
  auto& keys = KeySetAccess::of(tensor.unsafeGetTensorImpl());
  keys = keys.remove(kParameterKey);
}

ParameterLink* link_of(c10::StorageImpl* storage) {
  const at::DataPtr& data = storage->_mutable_data_ptr_no_checks();
  if (data.get_deleter() != &delete_link) return nullptr;
  return static_cast<ParameterLink*>(data.get_context());
}

c10::Storage make_linked_storage(std::unique_ptr<ParameterLink> link, void* data, std::int64_t bytes,
                                 c10::Device device) {
  return c10::Storage(c10::make_intrusive<c10::StorageImpl>(c10::StorageImpl::use_byte_size_t(), bytes,
                                                            at::DataPtr(data, link.release(), &delete_link, device),
                                                            /*allocator=*/nullptr, /*resizable=*/false));
}

at::DataPtr link_storage(c10::StorageImpl* storage, std::unique_ptr<ParameterLink> link) {
  const at::DataPtr& old = storage->_mutable_data_ptr_no_checks();
  return storage->set_data_ptr(at::DataPtr(old.get(), link.release(), &delete_link, old.device()));
}

void fill_storage(c10::StorageImpl* storage, void* data) {
  clear_guard(storage);
  set_address(storage, data);
}

void release_storage(c10::StorageImpl* storage, const std::string& message) {
  set_address(storage, nullptr);
  storage->release_data_and_set_meta_custom_data_ptr_error_msg_(message);
}

}  // namespace zeropage::paging
