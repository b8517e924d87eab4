// The Python interface of the device for tests.
#include <torch/extension.h>

#include "current.h"
#include "kernels.h"
#include "process_group.h"
#include "random.h"
#include "torch_parts.h"

namespace simulated_device {
namespace {

pybind11::dict counters() {
  const Counters counted = Machine::get().counters();
  pybind11::dict result;
  result["tasks"] = counted.tasks;
  result["bytes_read"] = counted.bytes_read;
  result["bytes_written"] = counted.bytes_written;
  result["waits"] = counted.waits;
  result["fetches"] = counted.fetches;
  result["uploads"] = counted.uploads;
  result["polled"] = counted.polled;
  result["update_launches"] = update_launches();
  return result;
}

PYBIND11_MODULE(_device, m) {
  const pybind11::call_guard<pybind11::gil_scoped_release> unlocked;
  m.def("register", [] {
    register_hooks();
    prefer_cpu_kernels();
    install_fault_handler();
  });
  m.def("set_visible", &set_visible);
  m.def("is_visible", &is_visible);
  m.def("current_device", &current_device);
  m.def("set_delays", [](std::uint64_t seed, int max_us) { Machine::get().set_delays({seed, max_us}); });
  m.def("take_faults", [] { return Machine::get().take_faults(); });
  m.def("counters", &counters);
  m.def("hold", [](int limit_ms) {
    Machine::get().hold(current_stream(current_device()), std::chrono::milliseconds(limit_ms));
  });
  m.def("let_go", [] { Machine::get().let_go(); });
  m.def("from_blob", [](std::uintptr_t address, std::int64_t numel) {
    return at::from_blob(reinterpret_cast<void*>(address), {numel}, at::TensorOptions().device(kType));
  });
  m.def("reset_counters", [] { Machine::get().reset_counters(); });
  m.def(
      "drain", [] { Machine::get().drain(); }, unlocked);
  m.def("default_generator", [](int device) { return default_generator(device); });
  m.def("make_backend", &make_backend);
  m.def("take_starts", &take_starts);
  m.def("kernels", [] { return pybind11::capsule(static_cast<const void*>(kernels())); });
  m.def("device_type", [] { return static_cast<int>(kType); });
  m.def("devices_with_context", &devices_with_context);
  m.def("device_count", [] { return kDevices; });
}

}  // namespace
}  // namespace simulated_device
