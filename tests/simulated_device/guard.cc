// Torch's interface for devices, streams and events.
#include <c10/core/Allocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <unistd.h>

#include <array>
#include <atomic>

#include "current.h"
#include "device_memory.h"

namespace simulated_device {
namespace {

struct ThreadState {
  int device = 0;
  std::array<int, kDevices> stream{};
};
thread_local ThreadState state;

const pid_t process = getpid();

std::array<std::atomic<bool>, kDevices> contexts{};

/// As CUDA's guard, which makes a device current for a call and then the previous one again.
void note_visit(int device) {
  note_context(device);
  note_context(state.device);
}

/// An event of torch: where it was last recorded.
struct Event {
  PointPtr point;
};

Event* as_event(void* event) { return static_cast<Event*>(event); }

struct Guard final : c10::impl::DeviceGuardImplInterface {
  c10::DeviceType type() const override { return kType; }
  c10::Device getDevice() const override { return {kType, static_cast<c10::DeviceIndex>(current_device())}; }
  void setDevice(c10::Device device) const override { set_current_device(device_index(device.index())); }
  void uncheckedSetDevice(c10::Device device) const noexcept override {
    if (device.index() >= 0 && device.index() < kDevices) state.device = device.index();
  }
  c10::Device exchangeDevice(c10::Device device) const override {
    const auto before = getDevice();
    setDevice(device);
    return before;
  }
  c10::DeviceIndex deviceCount() const noexcept override { return kDevices; }
  c10::DeviceCapability getDeviceCapability(c10::Device) const override { return {}; }

  c10::Stream getStream(c10::Device device) const override {
    return to_torch(current_stream(device_index(device.index())));
  }
  c10::Stream getDefaultStream(c10::Device device) const override {
    return to_torch(Machine::get().stream(device_index(device.index()), 0));
  }
  c10::Stream getStreamFromGlobalPool(c10::Device device, bool) const override {
    return to_torch(Machine::get().stream_of_pool(device_index(device.index())));
  }
  c10::Stream getNewStream(c10::Device device, int) const override { return getStreamFromGlobalPool(device, false); }
  c10::Stream exchangeStream(c10::Stream stream) const override {
    const auto before = getStream(stream.device());
    set_current_stream(from_torch(stream));
    return before;
  }
  void* getStreamNativeHandle(const c10::Stream stream) const override { return &from_torch(stream); }
  bool queryStream(const c10::Stream& stream) const override {
    return Machine::get().query(Machine::get().record(from_torch(stream)));
  }
  void synchronizeStream(const c10::Stream& stream) const override {
    Machine::get().wait(Machine::get().record(from_torch(stream)));
  }
  void synchronizeDevice(const c10::DeviceIndex device) const override {
    note_visit(device_index(device));
    Machine::get().synchronize(device_index(device));
  }
  void recordDataPtrOnStream(const c10::DataPtr& data, const c10::Stream& stream) const override {
    DeviceMemory::get().note_use(data.get_context(), from_torch(stream));
  }

  void destroyEvent(void* event, const c10::DeviceIndex device) const noexcept override {
    if (event != nullptr && device >= 0) note_visit(device);
    delete as_event(event);
  }
  void record(void** event, const c10::Stream& stream, const c10::DeviceIndex, const c10::EventFlag) const override {
    note_visit(device_index(stream.device_index()));
    if (*event == nullptr) *event = new Event();
    as_event(*event)->point = Machine::get().record(from_torch(stream));
  }
  void block(void* event, const c10::Stream& stream) const override {
    if (event == nullptr) return;
    note_visit(device_index(stream.device_index()));
    Machine::get().block(from_torch(stream), as_event(event)->point);
  }
  bool queryEvent(void* event) const override {
    return event == nullptr || Machine::get().query(as_event(event)->point);
  }
  void synchronizeEvent(void* event) const override {
    if (event != nullptr) Machine::get().wait(as_event(event)->point);
  }
  double elapsedTime(void* first, void* second, const c10::DeviceIndex) const override {
    const std::chrono::duration<double, std::milli> between =
        as_event(second)->point->time() - as_event(first)->point->time();
    return between.count();
  }
};

C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard);

}  // namespace

std::vector<int> devices_with_context() {
  std::vector<int> devices;
  for (int device = 0; device < kDevices; ++device) {
    if (contexts[device]) devices.push_back(device);
  }
  return devices;
}

void note_context(int device) { contexts[device] = true; }

int current_device() { return state.device; }

void set_current_device(int device) { state.device = device; }

int device_index(c10::DeviceIndex device) {
  TORCH_CHECK(getpid() == process, "simulated device: a process that was forked has no streams; start it by spawn");
  TORCH_CHECK(device < kDevices, "simulated device: there are ", kDevices, " devices, but not number ", int{device});
  return device < 0 ? current_device() : device;
}

Stream& current_stream(int device) { return Machine::get().stream(device, state.stream[device]); }

void set_current_stream(const Stream& stream) { state.stream[stream.device] = stream.id; }

c10::Stream to_torch(const Stream& stream) {
  const c10::Device device(kType, static_cast<c10::DeviceIndex>(stream.device));
  return c10::Stream(c10::Stream::UNSAFE, device, stream.id);
}

Stream& from_torch(const c10::Stream& stream) {
  return Machine::get().stream(device_index(stream.device_index()), static_cast<int>(stream.id()));
}

}  // namespace simulated_device
