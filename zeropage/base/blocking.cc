#include "zeropage/base/blocking.h"

#include <atomic>

namespace zeropage {
namespace {
std::atomic<BlockingScopeFactory> installed_factory{nullptr};
}  // namespace

void set_blocking_scope_factory(BlockingScopeFactory factory) {
  installed_factory.store(factory, std::memory_order_release);
}

std::unique_ptr<BlockingScope> enter_blocking() {
  auto factory = installed_factory.load(std::memory_order_acquire);
  return factory ? factory() : nullptr;
}

}  // namespace zeropage
