/// \file
/// The page-table entry of a parameter lives in the parameter's own storage: the context of its DataPtr is a
/// ParameterLink. So the way from any tensor that aliases a parameter (view, detach, saved tensor) to its page is two
/// pointer reads, with no table, no lock and no lifetime to manage: the entry goes when the storage goes.
#pragma once

#include "zeropage/paging/torch_config.h"

#include <c10/core/StorageImpl.h>

#include <atomic>
#include <memory>
#include <string>

namespace zeropage::paging {

class Pager;

/// How links find the pager; the pager clears it when it goes, since a model may outlive its engine.
struct PagerHandle {
  std::atomic<Pager*> pager{nullptr};
  std::atomic<bool> functions_seen{false};  ///< a custom autograd.Function took one of its parameters
};

struct ParameterLink {
  std::shared_ptr<PagerHandle> handle;
  int page = 0;
  bool paged = false;            ///< false: always resident, only writes are of interest
  std::shared_ptr<void> memory;  ///< keeps the memory of an always resident page alive; null when paged
};

/// The dispatch key whose boxed fallback sees operators on parameters. Unused by torch itself; the choice is made only here,
/// and `ensure_fallback` tests at start-up that it works.
inline constexpr c10::DispatchKey kParameterKey = c10::DispatchKey::DeferredInit;

/// Makes operators on `tensor` and its aliases visible to the fallback, or not.
void mark(const at::Tensor& tensor);
void unmark(const at::Tensor& tensor);
inline bool is_marked(const at::Tensor& tensor) { return tensor.key_set().has(kParameterKey); }

/// The link of a storage, or null when it is not a parameter's.
ParameterLink* link_of(c10::StorageImpl* storage);

/// A storage of `bytes` that carries `link`, its data at `data` (null: absent, to be guarded with `release_storage`).
c10::Storage make_linked_storage(std::unique_ptr<ParameterLink> link, void* data, std::int64_t bytes,
                                 c10::Device device);

/// Points the storage at `data`; its size and link stay.
void fill_storage(c10::StorageImpl* storage, void* data);

/// Takes the data away: any access that goes round the dispatcher now raises `message`. The size stays, so that views
/// of an absent parameter can be made.
void release_storage(c10::StorageImpl* storage, const std::string& message);

}  // namespace zeropage::paging
