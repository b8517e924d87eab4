// Separates the operators of one thread from the update by another thread.
//   1. The update announces itself (kAnnounced). From now on new operators wait. An operator that has pinned a page
//      already may pin its other pages: the update waits for it, so it must not wait for the update.
//   2. When no operator uses a page, the update runs (kRunning), decided under the pager's lock. All operators of other
//      threads wait now before they pin a page. Every rank is still before the global check, so no other rank reads
//      what a rank changes after it.
//   3. They continue at the end of the scope.
#include <fmt/format.h>

#include <algorithm>
#include <string>

#include "zeropage/comm/communicator.h"
#include "zeropage/paging/pager.h"

namespace zeropage::paging {
namespace {

/// The number of pages pinned by operators of this thread, in all pagers. Scopes do not count: updates do not wait for
/// them.
thread_local int pins_of_thread = 0;

}  // namespace

UpdateScope::UpdateScope(Pager& pager) : pager_(pager) {
  pager_.set_update(Pager::UpdatePhase::kAnnounced);
  try {
    pager_.wait_for_operators();
  } catch (...) {
    pager_.set_update(Pager::UpdatePhase::kNone);
    throw;
  }
}

UpdateScope::~UpdateScope() { pager_.set_update(Pager::UpdatePhase::kNone); }

void Pager::set_update(UpdatePhase phase) {
  auto guard = lock();
  update_phase_ = phase;
  updating_thread_ = std::this_thread::get_id();
}

void Pager::count_pins(int count) { pins_of_thread += count; }

void Pager::touch_for_scope(int page, std::string_view user) {
  use(page, /*writes=*/false, /*exact=*/true, user);
  count_pins(-1);
  auto guard = lock();
  ++pages_[page].scopes;
}

void Pager::unpin_of_scope(int page) {
  {
    auto guard = lock();
    --pages_[page].scopes;
  }
  count_pins(1);
  unpin(page);
}

bool Pager::must_wait_for_update() const {
  if (update_phase_ == UpdatePhase::kNone || updating_thread_ == std::this_thread::get_id()) return false;
  return update_phase_ == UpdatePhase::kRunning || pins_of_thread == 0;
}

void Pager::wait_for_update(std::unique_lock<std::mutex>& guard, int page, std::string_view user) {
  while (must_wait_for_update()) {
    guard.unlock();
    const auto over = [&] {
      const std::unique_lock<std::mutex> free(mutex_, std::try_to_lock);
      return free.owns_lock() && !must_wait_for_update();
    };
    comm::poll_until(
        *communicator_, over,
        fmt::format("the end of an update by another thread, before {} uses {}", user, pages_[page].label));
    guard = lock();
  }
}

/// Of all pages: each may be updated.
void Pager::wait_for_operators() {
  std::string in_use;
  const auto unused = [&] {
    const std::unique_lock<std::mutex> free(mutex_, std::try_to_lock);
    if (!free.owns_lock()) return false;
    const auto found = std::ranges::find_if(pages_, [](const auto& page) { return page.pins != page.scopes; });
    if (found != pages_.end()) {
      in_use = found->label;
      return false;
    }
    if (update_phase_ == UpdatePhase::kAnnounced) update_phase_ = UpdatePhase::kRunning;
    return true;
  };
  if (unused()) return;
  comm::poll_until(*communicator_, unused,
                   fmt::format("the end of operators that use {} in another thread, before an update",
                               in_use.empty() ? "pages" : in_use));
}

}  // namespace zeropage::paging
