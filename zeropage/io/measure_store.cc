#include "zeropage/io/measure_store.h"

#include <sys/resource.h>

#include <chrono>
#include <utility>

namespace zeropage::io {
namespace {

double cpu_seconds() {
  rusage used{};
  getrusage(RUSAGE_SELF, &used);
  const auto seconds = [](const timeval& time) {
    return static_cast<double>(time.tv_sec) + 1e-6 * static_cast<double>(time.tv_usec);
  };
  return seconds(used.ru_utime) + seconds(used.ru_stime);
}

std::vector<ExtentSpec> specs(int extents) {
  std::vector<ExtentSpec> specs;
  for (int i = 0; i < extents; ++i)
    specs.push_back({"measured extent " + std::to_string(i), MeasuredStore::kExtentBytes});
  return specs;
}

}  // namespace

MeasuredStore::MeasuredStore(StoreOptions options, int extents)
    : extents_(extents), store_(std::move(options), specs(extents)) {
  std::uint64_t random = 1;
  for (int i = 0; i < store_.buffer_count(); ++i) {
    const auto buffer = store_.buffer(i);
    auto* words = reinterpret_cast<std::uint64_t*>(buffer.data());
    // Not zeros: drives that compress would seem faster.
    for (std::size_t word = 0; word < buffer.size() / 8; ++word)
      words[word] = random = random * 6364136223846793005U + 1442695040888963407U;
  }
  for (int slot = 0; slot < 2; ++slot) pass(Traffic::kWrite);
}

Rate MeasuredStore::run(Traffic traffic) {
  const auto began = std::chrono::steady_clock::now();
  const double cpu_began = cpu_seconds();
  pass(traffic);
  Rate rate;
  rate.bytes = extents_ * kExtentBytes * (traffic == Traffic::kMixed ? 2 : 1);
  rate.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count();
  rate.cpu_seconds = cpu_seconds() - cpu_began;
  return rate;
}

void MeasuredStore::pass(Traffic traffic) {
  std::vector<Store::Ticket> under_way(static_cast<std::size_t>(store_.buffer_count()));
  const auto buffer_of = [&](int extent) { return extent % store_.buffer_count(); };
  const auto settle = [&](int extent) {
    Store::Ticket& ticket = under_way[static_cast<std::size_t>(buffer_of(extent))];
    if (ticket) store_.wait(std::exchange(ticket, nullptr));
  };
  const auto start = [&](bool write, int extent) {
    settle(extent);
    under_way[static_cast<std::size_t>(buffer_of(extent))] =
        write ? store_.write(extent, buffer_of(extent)) : store_.read(extent, buffer_of(extent));
  };
  // Half of the buffers are read ahead of the extent that a step would use.
  const int ahead = traffic == Traffic::kMixed ? store_.buffer_count() / 2 : 0;
  for (int i = 0; i < extents_ + ahead; ++i) {
    if (traffic != Traffic::kWrite && i < extents_) start(false, i);
    if (traffic != Traffic::kRead && i >= ahead) start(true, i - ahead);
  }
  for (int i = 0; i < store_.buffer_count(); ++i) settle(i);
  if (traffic != Traffic::kRead) store_.commit();
}

}  // namespace zeropage::io
