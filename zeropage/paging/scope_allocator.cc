#include "zeropage/paging/scope_allocator.h"

#include "zeropage/memory/torch_config.h"

#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/LocalDispatchKeySet.h>

#include <mutex>

#include "zeropage/memory/device_buffer.h"
#include "zeropage/paging/parameter_link.h"

namespace zeropage::paging {
namespace {

constexpr std::size_t kSmallestMappingBytes = 64 << 10;

class ScopeAllocator final : public c10::Allocator {
 public:
  explicit ScopeAllocator(c10::Allocator* usual) : usual_(usual) {}

  c10::DataPtr allocate(std::size_t bytes) override {
    if (bytes < kSmallestMappingBytes || !c10::impl::tls_is_dispatch_key_included(kParameterKey)) {
      return usual_->allocate(bytes);
    }
    return memory::make_owned_buffer(static_cast<std::int64_t>(bytes), c10::Device(c10::kCPU));
  }
  c10::DeleterFnPtr raw_deleter() const override { return usual_->raw_deleter(); }
  void copy_data(void* target, const void* source, std::size_t bytes) const override {
    usual_->copy_data(target, source, bytes);
  }

 private:
  c10::Allocator* usual_;
};

}  // namespace

void ensure_scope_allocator() {
  static std::once_flag once;
  std::call_once(once, [] {
    // Never destroyed: storages refer to their allocator until the process ends.
    static auto* allocator = new ScopeAllocator(c10::GetCPUAllocator());
    c10::SetCPUAllocator(allocator);
  });
}

}  // namespace zeropage::paging
