#include "zeropage/comm/measure_links.h"

#include <chrono>
#include <cstring>
#include <functional>

#include "zeropage/base/checked.h"

namespace zeropage::comm {
namespace {

constexpr std::int64_t kFewBytes = 64;
constexpr std::int64_t kRounds = 8;  // between two reads of the clock

/// Seconds of one call of `work`. Ranks stop together: rank 0's clock decides.
double seconds_of(Communicator& communicator, double seconds, const std::function<void()>& work) {
  work();  // first touch of the memory
  communicator.barrier({"measuring begins"});
  const auto began = std::chrono::steady_clock::now();
  const auto elapsed = [&] { return std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count(); };
  for (std::int64_t calls = 0;;) {
    for (std::int64_t i = 0; i < kRounds; ++i) work();
    calls += kRounds;
    const double now_s = elapsed();
    const char is_over = now_s >= seconds ? 1 : 0;
    if (all_gather_small(communicator, {&is_over, 1}, {"measuring continues"}).front() != 0) {
      return now_s / static_cast<double>(calls);
    }
  }
}

}  // namespace

LinkFigures measure_links(Communicator& communicator, std::int64_t page_bytes, double seconds) {
  LinkFigures figures;
  const int size = communicator.size();
  if (size == 1) return figures;
  constexpr std::int64_t kAlignment = 4096;
  const std::int64_t shard_bytes = round_up(page_bytes / size, kAlignment);
  const auto shard = communicator.allocate(2 * shard_bytes, "measured shard");  // also fits sums in fp32
  const auto whole = communicator.allocate(size * shard_bytes, "measured page");
  const auto gather = [&] {
    if (!communicator.one_sided()) {
      communicator.all_gather(shard->data(), whole->data(), shard_bytes, {"measured gather"})->wait();
      return;
    }
    for (int rank = 0; rank < size; ++rank) {
      std::memcpy(whole->data() + rank * shard_bytes, communicator.peer_address(rank, shard->data()),
                  static_cast<std::size_t>(shard_bytes));
    }
  };
  const auto reduce = [&] {
    communicator
        .reduce_scatter(whole->data(), shard->data(), shard_bytes / 2, DType::kBFloat16, DType::kFloat32, false,
                        {"measured reduction"}, /*on_reduced=*/{})
        ->wait();
  };
  const auto hop = [&] { communicator.all_gather(shard->data(), whole->data(), kFewBytes, {"measured hop"})->wait(); };
  const double received_bytes = static_cast<double>((size - 1) * shard_bytes);
  figures.gather_rate = received_bytes / seconds_of(communicator, seconds / 3, gather);
  figures.reduce_rate = received_bytes / seconds_of(communicator, seconds / 3, reduce);
  figures.hop_s = seconds_of(communicator, seconds / 3, hop) / (size - 1);
  return figures;
}

}  // namespace zeropage::comm
