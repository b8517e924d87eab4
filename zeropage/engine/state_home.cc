#include "zeropage/engine/state_home.h"

#include <exception>
#include <utility>

namespace zeropage::engine {
namespace {

class MemoryHome final : public StateHome {
 public:
  MemoryHome(const StateShape& shape, paging::MemoryPlace device, paging::MemoryPlace host,
             const std::shared_ptr<Ledger>& ledger)
      : shape_(shape),
        device_(device),
        ledger_(ledger),
        tiers_{{Tier{device, nullptr}, Tier{host, nullptr}}},
        pages_(shape.numel.size()) {
    for (const bool offloaded : {false, true}) fill_tier(offloaded);
  }

  c10::Device device(int page) const override { return tiers_[shape_.offloaded[page]].place.device; }
  std::vector<int> begin_pass(std::vector<int> pages) override { return pages; }
  StateArrays acquire(int page) override { return pages_[page]; }
  void release(int page, bool changed) override {}
  void end_pass() override {}
  void unload() override { move_kept(tiers_[true].place); }
  void reload() override { move_kept(device_); }

 private:
  struct Tier {
    paging::MemoryPlace place;
    std::unique_ptr<paging::DeviceBuffer> memory;
  };

  void fill_tier(bool offloaded) {
    std::int64_t numel = 0;
    for (std::size_t page = 0; page < pages_.size(); ++page) {
      if (shape_.offloaded[page] == offloaded) numel += shape_.numel[page] * shape_.arrays();
    }
    auto& tier = tiers_[offloaded];
    tier.memory = std::make_unique<paging::DeviceBuffer>(4 * numel, tier.place, ledger_, MemoryKind::kOptimizer);
    place_arrays(offloaded);
  }

  void place_arrays(bool offloaded) {
    auto* next = reinterpret_cast<float*>(tiers_[offloaded].memory->data());
    for (std::size_t page = 0; page < pages_.size(); ++page) {
      const std::int64_t page_numel = shape_.numel[page];
      if (page_numel == 0 || shape_.offloaded[page] != offloaded) continue;
      if (shape_.masters) pages_[page].master = std::exchange(next, next + page_numel);
      for (int i = 0; i < shape_.states; ++i) pages_[page].states[i] = std::exchange(next, next + page_numel);
    }
  }

  /// Moves what is not offloaded.
  void move_kept(paging::MemoryPlace place) {
    auto& kept = tiers_[false];
    const std::int64_t bytes = kept.memory->bytes();
    auto memory = std::make_unique<paging::DeviceBuffer>(bytes, place, ledger_, MemoryKind::kOptimizer);
    paging::copy_bytes(memory->data(), place.device, kept.memory->data(), kept.place.device, bytes);
    kept.place = place;
    kept.memory = std::move(memory);
    place_arrays(false);
  }

  StateShape shape_;
  paging::MemoryPlace device_;
  std::shared_ptr<Ledger> ledger_;
  std::array<Tier, 2> tiers_;  // of what stays, and of what is offloaded
  std::vector<StateArrays> pages_;
};

}  // namespace

std::unique_ptr<StateHome> make_memory_home(const StateShape& shape, paging::MemoryPlace device,
                                            paging::MemoryPlace host, std::shared_ptr<Ledger> ledger) {
  return std::make_unique<MemoryHome>(shape, device, host, ledger);
}

HeldState::HeldState(StateHome& home, int page, Access access)
    : home_(home), page_(page), access_(access), exceptions_(std::uncaught_exceptions()), arrays_(home.acquire(page)) {}

HeldState::~HeldState() noexcept(false) {
  const bool failing = std::uncaught_exceptions() > exceptions_;
  try {
    home_.release(page_, access_ == Access::kWrite);
  } catch (...) {
    if (!failing) throw;  // else the error that is under way says more
  }
}

}  // namespace zeropage::engine
