// The rest of torch's interface for an accelerator: whether it is there, its allocators, its random numbers.
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <c10/core/CachingDeviceAllocator.h>

#include <atomic>

#include "current.h"
#include "device_memory.h"
#include "random.h"
#include "torch_parts.h"

namespace simulated_device {
namespace {

std::atomic<bool> visible = true;

void free_device_memory(void* data) { DeviceMemory::get().free(data); }
void free_pinned_memory(void* data) { Machine::get().pinned().free(data); }

/// The context of its pointers is the block, as that of torch's own allocators for GPUs.
struct DeviceAllocator final : c10::DeviceAllocator {
  c10::DataPtr allocate(std::size_t bytes) override {
    const int device = current_device();
    const c10::Device where(kType, static_cast<c10::DeviceIndex>(device));
    if (bytes == 0) return {nullptr, nullptr, &free_device_memory, where};
    note_context(device);
    void* data = DeviceMemory::get().allocate(current_stream(device), bytes);
    TORCH_CHECK_WITH(OutOfMemoryError, data != nullptr, "simulated device: no ", bytes, " bytes are left");
    return {data, data, &free_device_memory, where};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &free_device_memory; }
  void copy_data(void*, const void*, std::size_t) const override { TORCH_CHECK(false, "simulated device: copy_data"); }

  bool initialized() override { return true; }
  void emptyCache(c10::MempoolId_t) override { DeviceMemory::get().empty_cache(); }
  void recordStream(const c10::DataPtr& data, c10::Stream stream) override {
    DeviceMemory::get().note_use(data.get_context(), from_torch(stream));
  }
  c10::CachingDeviceAllocator::DeviceStats getDeviceStats(c10::DeviceIndex device) override {
    const auto bytes = DeviceMemory::get().bytes(device_index(device));
    c10::CachingDeviceAllocator::DeviceStats stats;
    const auto set = [](c10::CachingAllocator::StatArray& stat, std::int64_t now, std::int64_t peak) {
      stat[0].current = now;
      stat[0].peak = peak;
    };
    set(stats.allocated_bytes, bytes.used, bytes.most_used);
    set(stats.active_bytes, bytes.used, bytes.most_used);
    set(stats.reserved_bytes, bytes.reserved, bytes.most_reserved);
    return stats;
  }
  void resetAccumulatedStats(c10::DeviceIndex) override {}
  void resetPeakStats(c10::DeviceIndex device) override { DeviceMemory::get().reset_peak(device_index(device)); }
  std::pair<std::size_t, std::size_t> getMemoryInfo(c10::DeviceIndex device) override {
    constexpr std::size_t kTotal = std::size_t{8} << 30;
    return {kTotal - DeviceMemory::get().bytes(device_index(device)).reserved, kTotal};
  }
};

struct PinnedAllocator final : c10::Allocator {
  c10::DataPtr allocate(std::size_t bytes) override {
    if (bytes == 0) return {nullptr, nullptr, &free_pinned_memory, c10::Device(c10::kCPU)};
    void* data = Machine::get().pinned().allocate(bytes);
    TORCH_CHECK_WITH(OutOfMemoryError, data != nullptr, "simulated device: no ", bytes, " page-locked bytes are left");
    return {data, data, &free_pinned_memory, c10::Device(c10::kCPU)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &free_pinned_memory; }
  void copy_data(void* target, const void* source, std::size_t bytes) const override {
    default_copy_data(target, source, bytes);
  }
};

struct Hooks final : at::PrivateUse1HooksInterface {
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return visible; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return visible; }
  c10::DeviceIndex deviceCount() const override { return visible ? kDevices : 0; }
  void setCurrentDevice(c10::DeviceIndex device) const override { set_current_device(device_index(device)); }
  c10::DeviceIndex getCurrentDevice() const override { return static_cast<c10::DeviceIndex>(current_device()); }
  c10::DeviceIndex exchangeDevice(c10::DeviceIndex device) const override {
    const auto before = getCurrentDevice();
    if (device >= 0) setCurrentDevice(device);
    return before;
  }
  c10::DeviceIndex maybeExchangeDevice(c10::DeviceIndex device) const override { return exchangeDevice(device); }

  bool isPinnedPtr(const void* data) const override { return Machine::get().pinned().contains(data); }
  at::Allocator* getPinnedMemoryAllocator() const override {
    static auto* allocator = new PinnedAllocator();
    return allocator;
  }
  at::Device getDeviceFromPtr(void* data) const override {
    // As CUDA, which knows page-locked memory of the host, too.
    if (Machine::get().pinned().contains(data)) return {kType, static_cast<c10::DeviceIndex>(current_device())};
    const auto device = DeviceMemory::get().device_of(data);
    TORCH_CHECK(device, "simulated device: ", data, " is in no block of device memory");
    return {kType, static_cast<c10::DeviceIndex>(*device)};
  }
  const at::Generator& getDefaultGenerator(c10::DeviceIndex device) const override {
    return default_generator(device_index(device));
  }
  at::Generator getNewGenerator(c10::DeviceIndex device) const override { return new_generator(device_index(device)); }
  void resizePrivateUse1Bytes(const c10::Storage& storage, std::size_t bytes) const override {
    resize_storage(storage, bytes);
  }
};

DeviceAllocator device_allocator;
REGISTER_ALLOCATOR(kType, &device_allocator);

}  // namespace

void register_hooks() { at::RegisterPrivateUse1HooksInterface(new Hooks()); }

void set_visible(bool value) { visible = value; }

bool is_visible() { return visible; }

}  // namespace simulated_device
