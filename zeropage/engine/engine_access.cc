// Access of users to whole parameters: gather and release.
#include <fmt/format.h>

#include <utility>

#include "zeropage/base/error.h"
#include "zeropage/engine/engine_impl.h"

namespace zeropage::engine {

void Engine::Impl::release(std::int64_t ticket, int modifier_rank) {
  if (modifier_rank >= 0) require_whole_state("release");
  auto found = tickets_.find(ticket);
  if (found == tickets_.end())
    throw UsageError(fmt::format("gather ticket {} is not open; release each ticket once", ticket));
  const auto pages = std::move(found->second);
  tickets_.erase(found);
  auto& pager = state_.pager();
  for (int page : pages) {
    if (modifier_rank >= 0) {
      std::byte* data = pager.paged(page) ? pager.frame(page) : state_.whole_page(page);
      communicator_
          ->broadcast(data, state_.layout()->pages()[page].padded_bytes(), modifier_rank,
                      comm::Tag{"parameters modified by one rank", page})
          ->wait();
      pager.paged(page) ? pager.mark_dirty(page) : pager.note_write(page);
    }
    if (pager.paged(page)) pager.unpin(page);
  }
}

std::int64_t Engine::gather(const std::vector<at::Tensor>& parameters) {
  impl_->moved_->require_none("gather");
  impl_->state_.absorb_replaced();
  auto& pager = impl_->state_.pager();
  std::set<int> pages;
  for (const auto& parameter : parameters) {
    const auto* link = paging::link_of(parameter.unsafeGetTensorImpl()->unsafe_storage().unsafeGetStorageImpl());
    if (link == nullptr || link->handle != pager.handle()) {
      throw UsageError("gather() was given a tensor that is not a parameter of this engine");
    }
    pages.insert(link->page);
  }
  for (const int page : pages)
    if (pager.paged(page)) pager.touch(page, /*writes=*/false, "gathered parameters");
  impl_->tickets_[impl_->next_ticket_] = std::move(pages);
  return impl_->next_ticket_++;
}
void Engine::release(std::int64_t ticket, int modifier_rank) { impl_->release(ticket, modifier_rank); }
}  // namespace zeropage::engine
