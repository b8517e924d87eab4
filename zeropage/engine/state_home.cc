#include "zeropage/engine/state_home.h"

#include <exception>
#include <utility>

#include "zeropage/paging/device_buffer.h"

namespace zeropage::engine {
namespace {

class MemoryHome final : public StateHome {
 public:
  MemoryHome(const StateShape& shape, c10::Device device, std::shared_ptr<Ledger> ledger)
      : device_(device), pages_(shape.numel.size()) {
    std::int64_t total_numel = 0;
    for (const std::int64_t numel : shape.numel) total_numel += numel * shape.arrays();
    memory_ =
        std::make_unique<paging::DeviceBuffer>(4 * total_numel, device, std::move(ledger), MemoryKind::kOptimizer);
    auto* next = reinterpret_cast<float*>(memory_->data());
    for (std::size_t page = 0; page < pages_.size(); ++page) {
      const std::int64_t numel = shape.numel[page];
      if (numel == 0) continue;
      if (shape.masters) pages_[page].master = std::exchange(next, next + numel);
      for (int i = 0; i < shape.states; ++i) pages_[page].states[i] = std::exchange(next, next + numel);
    }
  }

  c10::Device device(int page) const override { return device_; }
  std::vector<int> begin_pass(std::vector<int> pages) override { return pages; }
  StateArrays acquire(int page) override { return pages_[page]; }
  void release(int page, bool changed) override {}
  void end_pass() override {}

 private:
  c10::Device device_;
  std::unique_ptr<paging::DeviceBuffer> memory_;
  std::vector<StateArrays> pages_;
};

}  // namespace

std::unique_ptr<StateHome> make_memory_home(const StateShape& shape, c10::Device device,
                                            std::shared_ptr<Ledger> ledger) {
  return std::make_unique<MemoryHome>(shape, device, std::move(ledger));
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
