/// \file
/// The page-table entry of a parameter is in the parameter's own storage: the context of its DataPtr is a
/// ParameterLink. So finding the page of any tensor that aliases a parameter (view, detach, saved tensor) takes two
/// pointer reads, without a table, a lock or a lifetime to manage: the entry is destroyed with the storage.
#pragma once

#include "zeropage/memory/torch_config.h"

#include <c10/core/StorageImpl.h>

#include <atomic>
#include <memory>
#include <string>
#include <string_view>

#include "zeropage/base/timeline.h"

namespace zeropage::paging {

/// The interface of the owner of a parameter's page: an engine's pager, or an Init scope (engine/deferred_pages.h).
class PageTable {
 public:
  /// Makes the page resident and pins it; `writes` marks it dirty. Errors: TimeoutError and PeerError, with `user` (the
  /// operator's name) in the message; after an error the page is not pinned.
  virtual void touch(int page, bool writes, std::string_view user) = 0;
  virtual void unpin(int page) = 0;

  /// An operator wrote a parameter of an always resident page (16-bit: its master must follow).
  virtual void note_write(int page) = 0;

  /// Sets the error of an absent page's guards to the reason of its absence.
  virtual void explain_absence(int page, const std::string& cause) = 0;

 protected:
  ~PageTable() = default;
};

/// Leads from links to the page table, which clears it in its destructor.
struct PagerHandle {
  std::atomic<PageTable*> pager{nullptr};
  std::atomic<bool> functions_seen{false};  ///< a custom autograd.Function took one of its parameters
  std::shared_ptr<Timeline> timeline;       ///< null without observation; set before the first operator
};

struct ParameterLink {
  std::shared_ptr<PagerHandle> handle;
  int page = 0;
  bool paged = false;     ///< false: always resident, only writes are of interest
  bool deferred = false;  ///< whether it is of an Init scope and no engine has taken it over yet
  std::shared_ptr<void>
      memory;  ///< kept alive as long as the storage: memory of an unsharded page, a deferred home, or, after the engine's end, the pager
};

/// The dispatch key whose boxed fallback is called for operators on parameters. Unused by torch itself; the choice is
/// made only here, and `ensure_fallback` tests at start-up that it works.
inline constexpr c10::DispatchKey kParameterKey = c10::DispatchKey::DeferredInit;

/// Makes operators on `tensor` and its aliases call the fallback.
void mark(const at::Tensor& tensor);
void unmark(const at::Tensor& tensor);
inline bool is_marked(const at::Tensor& tensor) { return tensor.key_set().has(kParameterKey); }

/// Whether `tensor` is a parameter of a sharded page, or an alias of one. Costs a few pointer reads.
bool is_paged(const at::Tensor& tensor);

/// The link of a storage, or null when it is not a parameter's.
ParameterLink* link_of(c10::StorageImpl* storage);

/// A storage of `bytes` that carries `link`, its data at `data` (null: absent, to be guarded with `release_storage`).
c10::Storage make_linked_storage(std::unique_ptr<ParameterLink> link, void* data, std::int64_t bytes,
                                 c10::Device device);

/// Gives an existing storage a link; its data does not move. Returns the pointer that owns the data: from now on the
/// caller must keep it alive.
at::DataPtr link_storage(c10::StorageImpl* storage, std::unique_ptr<ParameterLink> link);

/// Points the storage at `data`; its size and link do not change.
void fill_storage(c10::StorageImpl* storage, void* data);

/// Removes the data: any access that bypasses the dispatcher now raises `message`. The size does not change, so that
/// views of an absent parameter can be made.
void release_storage(c10::StorageImpl* storage, const std::string& message);

/// That message for a sharded tensor. `subject` names it; `cpp_scope`: the C++ function that makes it resident;
/// `ending`: the end of the sentence that says what to do.
std::string not_resident_message(std::string_view subject, std::string_view cpp_scope, std::string_view ending);

/// While torch's profiler runs, it reads the address in every storage that it finds, and the guard's error would end
/// the step or leave shapes out of its records. Until `profiled` is false again guards raise for pointers that may be
/// written through (`data_ptr()`, `.numpy()`) and return a null pointer for read-only ones. For the whole process;
/// `guard_again` changes the guard of a storage that is absent already.
void set_profiled(bool profiled);
void guard_again(c10::StorageImpl* storage);

}  // namespace zeropage::paging
