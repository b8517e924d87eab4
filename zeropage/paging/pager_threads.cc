// What keeps the operators of one thread and the update by another apart.
#include <fmt/format.h>

#include "zeropage/comm/communicator.h"
#include "zeropage/paging/pager.h"

namespace zeropage::paging {

UpdateScope::UpdateScope(Pager& pager, const std::vector<int>& updated) : pager_(pager) {
  pager_.set_updating(std::this_thread::get_id());
  try {
    pager_.drop_stale(updated);
  } catch (...) {
    pager_.set_updating(std::nullopt);
    throw;
  }
}

UpdateScope::~UpdateScope() { pager_.set_updating(std::nullopt); }

void Pager::set_updating(std::optional<std::thread::id> thread) {
  auto guard = lock();
  updating_ = thread;
}

void Pager::touch_for_scope(int page, std::string_view user) {
  touch(page, /*writes=*/false, user);
  auto guard = lock();
  ++pages_[page].scopes;
}

void Pager::unpin_of_scope(int page) {
  {
    auto guard = lock();
    --pages_[page].scopes;
  }
  unpin(page);
}

void Pager::wait_for_update(std::unique_lock<std::mutex>& guard, int page, std::string_view user) {
  while (updating_ && *updating_ != std::this_thread::get_id()) {
    guard.unlock();
    const auto over = [&] {
      const std::unique_lock<std::mutex> free(mutex_, std::try_to_lock);
      return free.owns_lock() && !updating_;
    };
    comm::poll_until(
        *communicator_, over,
        fmt::format("the end of an update by another thread, before {} uses {}", user, pages_[page].label));
    guard = lock();
  }
}

void Pager::wait_for_operators(const std::vector<int>& pages) {
  for (const int page : pages) {
    const auto unused = [&] {
      const std::unique_lock<std::mutex> free(mutex_, std::try_to_lock);
      return free.owns_lock() && pages_[page].pins == pages_[page].scopes;
    };
    comm::poll_until(
        *communicator_, unused,
        fmt::format("the end of operators that use {} in another thread, before it is updated", pages_[page].label));
  }
}

}  // namespace zeropage::paging
