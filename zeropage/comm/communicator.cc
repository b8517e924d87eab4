#include "zeropage/comm/communicator.h"

#include <fmt/format.h>

#include <algorithm>
#include <thread>

#include "zeropage/base/blocking.h"
#include "zeropage/base/error.h"

namespace zeropage::comm {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::microseconds;

constexpr microseconds kSpin{20};             // such a short wait is not worth a sleep
constexpr microseconds kAbortSlice{200'000};  // between checks whether a rank has aborted

}  // namespace

std::string Communicator::gather_host_bytes(std::string_view mine, Tag tag) {
  std::string all(mine.size() * static_cast<std::size_t>(size()), '\0');
  all_gather(mine.data(), all.data(), static_cast<std::int64_t>(mine.size()), tag)->wait();
  return all;
}

std::unique_ptr<Memory> Communicator::allocate_nearby(std::int64_t, std::string_view) {
  throw UsageError("this communicator has no nearby ranks; ask nearby_size() before allocate_nearby()");
}

WorkPtr Communicator::all_gather_nearby(const void*, void*, std::int64_t, Tag) {
  throw UsageError("this communicator has no nearby ranks; ask nearby_size() before all_gather_nearby()");
}

WorkPtr Communicator::reduce_scatter_in_codes(const void*, void*, std::int64_t, DType, DType, bool, Tag, OnReduced,
                                              const SumCodec&) {
  throw UsageError(
      "this communicator sums over all ranks at once; ask sums_by_hosts() before reduce_scatter_in_codes()");
}

void poll_until(Communicator& communicator, const std::function<bool()>& ready, std::string_view what) {
  if (ready()) return;
  const auto blocking = enter_blocking();
  const auto begin = Clock::now();
  auto next_look = begin + kAbortSlice;
  while (!ready()) {
    const auto now = Clock::now();
    const auto waited = std::chrono::duration_cast<microseconds>(now - begin);
    if (now >= next_look) {
      communicator.throw_if_aborted();
      next_look = now + kAbortSlice;
    }
    if (waited >= communicator.timeout()) {
      communicator.throw_if_aborted();
      const std::string message = fmt::format(
          "rank {} waited {} ms for {}, which did not end; see whether another rank has failed or is late, and "
          "whether this rank's device still answers",
          communicator.rank(), communicator.timeout().count(), what);
      communicator.abort(message);
      throw TimeoutError(message);
    }
    if (waited < kSpin) {
      std::this_thread::yield();
    } else {
      // The wait ends at most a sixteenth of its duration, and a tenth of a millisecond, too late.
      std::this_thread::sleep_for(std::clamp(waited / 16, microseconds(5), microseconds(100)));
    }
  }
}

std::string all_gather_small(Communicator& communicator, std::string_view mine, Tag tag) {
  return communicator.gather_host_bytes(mine, tag);
}

}  // namespace zeropage::comm
