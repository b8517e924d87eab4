#include "zeropage/paging/exact_read.h"

#include "zeropage/paging/pager.h"

namespace zeropage::paging {

ExactRead::ExactRead(const at::Tensor& tensor) {
  if (!tensor.defined() || !tensor.unsafeGetTensorImpl()->has_storage()) return;
  const auto* link = link_of(tensor.unsafeGetTensorImpl()->unsafe_storage().unsafeGetStorageImpl());
  if (link == nullptr || !link->paged) return;
  auto* pager = dynamic_cast<Pager*>(link->handle->pager.load(std::memory_order_acquire));
  if (pager == nullptr || !pager->is_coded(link->page)) return;
  pager->touch_for_scope(link->page, "a copy of a parameter");
  handle_ = link->handle;
  page_ = link->page;
}

ExactRead::~ExactRead() {
  if (!handle_) return;
  if (PageTable* pager = handle_->pager.load(std::memory_order_acquire))
    static_cast<Pager*>(pager)->unpin_of_scope(page_);
}

}  // namespace zeropage::paging
