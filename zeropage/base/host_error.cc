#include "zeropage/base/host_error.h"

#include <atomic>

namespace zeropage {
namespace {
std::atomic<HostErrorTranslator> installed_translator{nullptr};
}  // namespace

void set_host_error_translator(HostErrorTranslator translator) {
  installed_translator.store(translator, std::memory_order_release);
}

void rethrow_for_host() {
  if (auto translator = installed_translator.load(std::memory_order_acquire)) translator(std::current_exception());
  throw;
}

}  // namespace zeropage
