#include "zeropage/paging/parameter_link.h"

#include <c10/core/CPUAllocator.h>
#include <fmt/format.h>

namespace zeropage::paging {
namespace {

// torch 2.11 has no function that removes the access guard of a storage, and no version has one that removes the guard
// against writing. The flags are private; an explicit instantiation may name private members, and the friend functions
// that it defines give access.
struct GuardFlags {
  bool& raises;           // for every pointer
  bool& raises_on_write;  // for those that may be written through
};
GuardFlags flags_of(c10::StorageImpl* storage);
void refresh_guard(c10::StorageImpl* storage);
template <auto Raises, auto RaisesOnWrite, auto Refresh>
struct GuardAccess {
  friend GuardFlags flags_of(c10::StorageImpl* storage) { return {storage->*Raises, storage->*RaisesOnWrite}; }
  friend void refresh_guard(c10::StorageImpl* storage) { (storage->*Refresh)(); }
};
template struct GuardAccess<&c10::StorageImpl::throw_on_immutable_data_ptr_,
                            &c10::StorageImpl::throw_on_mutable_data_ptr_,
                            &c10::StorageImpl::refresh_has_data_ptr_check>;

void clear_guard(c10::StorageImpl* storage) {
  const auto flags = flags_of(storage);
  if (!flags.raises && !flags.raises_on_write) return;
  flags.raises = flags.raises_on_write = false;
  storage->get_extra_meta().custom_data_ptr_error_msg_ = std::nullopt;
  refresh_guard(storage);
}

std::atomic<bool> profiled_now{false};

void delete_link(void* context) { delete static_cast<ParameterLink*>(context); }

// The key set is protected in TensorImpl; a derived class may access the member.
struct KeySetAccess : c10::TensorImpl {
  static c10::DispatchKeySet& of(c10::TensorImpl* tensor) { return tensor->*(&KeySetAccess::key_set_); }
};

void set_address(c10::StorageImpl* storage, void* data) {
  at::DataPtr& old = storage->_mutable_data_ptr_no_checks();
  if (old.get_deleter() != &delete_link) return;  // the user replaced the storage's memory (share_memory_)
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

bool is_paged(const at::Tensor& tensor) {
  if (!tensor.defined() || !is_marked(tensor) || !tensor.unsafeGetTensorImpl()->has_storage()) return false;
  const ParameterLink* link = link_of(tensor.unsafeGetTensorImpl()->unsafe_storage().unsafeGetStorageImpl());
  return link != nullptr && link->paged;
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
  flags_of(storage).raises_on_write = false;
  storage->release_data_and_set_meta_custom_data_ptr_error_msg_(message);
  guard_again(storage);
}

void set_profiled(bool profiled) { profiled_now.store(profiled); }

void guard_again(c10::StorageImpl* storage) {
  const auto flags = flags_of(storage);
  if (!flags.raises && !flags.raises_on_write) return;
  flags.raises_on_write = profiled_now.load(std::memory_order_relaxed);
  flags.raises = !flags.raises_on_write;
  refresh_guard(storage);
}

std::string not_resident_message(std::string_view subject, std::string_view cpp_scope, std::string_view ending) {
  return fmt::format(
      "{} is sharded and not resident now, and this code reads it without going through torch's operators (data_ptr, "
      "numpy, torch.save, a compiled kernel). Wrap it in `with zeropage.zero.GatheredParameters([p]):` (C++: `auto "
      "scope = {}({{p}});`){}",
      subject, cpp_scope, ending);
}

}  // namespace zeropage::paging
