#include "zeropage/paging/pinned_pages.h"

namespace zeropage::paging {

void PinnedPages::use(const at::Tensor& tensor, bool writes, std::string_view user) {
  if (!tensor.defined() || !is_marked(tensor) || !tensor.unsafeGetTensorImpl()->has_storage()) return;
  ParameterLink* link = link_of(tensor.unsafeGetTensorImpl()->unsafe_storage().unsafeGetStorageImpl());
  if (link == nullptr || (!link->paged && !writes)) return;
  PageTable* pager = link->handle->pager.load(std::memory_order_acquire);
  if (pager == nullptr) return;
  if (!link->paged) {
    pager->note_write(link->page);
    return;
  }
  if (timeline_ == nullptr && link->handle->timeline) begin(*link, user);
  pager->touch(link->page, writes, user);
  pinned_.emplace_back(link->handle, link->page);
}

PinnedPages::~PinnedPages() {
  if (timeline_ != nullptr) timeline_->add(SpanKind::kOperator, name_, page_, begin_ns_);
  for (auto& [handle, page] : pinned_) {
    // The operator may have replaced the storage's memory, and so ended the last page of an Init scope.
    if (PageTable* pager = handle->pager.load(std::memory_order_acquire)) pager->unpin(page);
  }
}

void PinnedPages::begin(const ParameterLink& link, std::string_view user) {
  timeline_ = link.handle->timeline;
  name_ = user;
  page_ = link.page;
  begin_ns_ = Timeline::now_ns();
}

}  // namespace zeropage::paging
