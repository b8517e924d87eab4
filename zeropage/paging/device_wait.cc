#include "zeropage/paging/device_wait.h"

#include <ATen/ops/empty.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <fmt/format.h>

#include <exception>
#include <future>
#include <memory>
#include <thread>

#include "zeropage/base/log.h"
#include "zeropage/memory/device_buffer.h"

namespace zeropage::paging {

void wait_for(const c10::Event& event, comm::Communicator& communicator, std::string_view what) {
  comm::poll_until(
      communicator, [&] { return event.query(); }, what);
}

void wait_for_stream(c10::Device device, comm::Communicator& communicator, std::string_view what) {
  if (device.is_cpu()) return;
  c10::Event done(device.type());
  done.record(memory::current_stream(device));
  wait_for(done, communicator, what);
}

at::Tensor fetch(const at::Tensor& values, comm::Communicator& communicator, std::string_view what) {
  if (values.device().is_cpu()) return values;
  const at::Tensor host = at::empty(values.sizes(), values.options().device(at::kCPU).pinned_memory(true));
  host.copy_(values, /*non_blocking=*/true);
  wait_for_stream(values.device(), communicator, what);
  return host;
}

at::Tensor to_host(const at::Tensor& values, comm::Communicator& communicator, std::string_view what) {
  wait_for_stream(values.device(), communicator, what);
  return values.cpu();
}

void wait_for_device(c10::Device device, comm::Communicator& communicator, std::string_view what) {
  if (device.is_cpu()) return;
  // Devices have no query for whether all of their streams are idle, so a separate thread waits, which may be
  // abandoned.
  auto idle = std::make_shared<std::promise<void>>();
  auto waiting = idle->get_future();
  std::thread([device, idle] {
    try {
      // A new thread uses device 0, and CUDA would make a context there.
      const c10::DeviceGuard guard(device);
      c10::impl::VirtualGuardImpl(device.type()).synchronizeDevice(device.index());
      idle->set_value();
    } catch (...) {
      idle->set_exception(std::current_exception());
    }
  }).detach();
  const auto ready = [&] { return waiting.wait_for(std::chrono::seconds(0)) == std::future_status::ready; };
  comm::poll_until(communicator, ready, what);
  waiting.get();
}

void come_to_rest(c10::Device device, comm::Communicator& communicator, std::string_view whose) noexcept {
  try {
    wait_for_device(device, communicator, fmt::format("the device, before the memory of {} is freed", whose));
  } catch (const std::exception& error) {
    log_warn(fmt::format("{} ends while its device is still at work: {}", whose, error.what()));
  }
}

}  // namespace zeropage::paging
