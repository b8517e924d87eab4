#include "zeropage/comm/shm/region_control.h"

#include <linux/futex.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <climits>
#include <cstring>
#include <new>

namespace zeropage::comm {
namespace {

static_assert(std::atomic<std::uint64_t>::is_always_lock_free && std::atomic<std::uint32_t>::is_always_lock_free,
              "atomics in memory shared by processes must not need a lock");

}  // namespace

void copy_text(std::string_view text, char* to, std::size_t capacity) {
  const std::size_t length = std::min(text.size(), capacity - 1);
  std::memcpy(to, text.data(), length);
  to[length] = '\0';
}

void ControlBlock::notify() {
  event.fetch_add(1, std::memory_order_seq_cst);
  if (sleepers.load(std::memory_order_seq_cst) != 0) {
    syscall(SYS_futex, reinterpret_cast<std::uint32_t*>(&event), FUTEX_WAKE, INT_MAX, nullptr, nullptr, 0);
  }
}

void ControlBlock::sleep_until_event(std::uint32_t seen, std::chrono::microseconds limit) {
  const timespec slice{static_cast<time_t>(limit.count() / 1000000), static_cast<long>(limit.count() % 1000000 * 1000)};
  sleepers.fetch_add(1, std::memory_order_seq_cst);
  // The kernel compares `event` with `seen` itself, so a notify between the caller's check and this call is not lost.
  syscall(SYS_futex, reinterpret_cast<std::uint32_t*>(&event), FUTEX_WAIT, seen, &slice, nullptr, 0);
  sleepers.fetch_sub(1, std::memory_order_seq_cst);
}

void ControlBlock::abort(int rank, std::string_view reason) {
  std::uint32_t expected = 0;
  if (!aborted.compare_exchange_strong(expected, 1)) return;
  abort_rank = rank;
  copy_text(reason, abort_reason, sizeof(abort_reason));
  aborted.store(2, std::memory_order_release);
  notify();
}

ControlBlock* create_control(std::byte* memory, int size) {
  auto* control = new (memory) ControlBlock;
  for (int r = 0; r < size; ++r) new (&control->rank(r)) RankControl;
  control->size.store(size, std::memory_order_relaxed);
  return control;
}

}  // namespace zeropage::comm
