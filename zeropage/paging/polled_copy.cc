#include "zeropage/paging/polled_copy.h"

#include <ATen/Context.h>

#include "zeropage/memory/device_buffer.h"
#include "zeropage/paging/device_wait.h"

namespace zeropage::paging {

void start_polled_copy(void* target, c10::Device target_device, const void* source, c10::Device source_device,
                       std::int64_t bytes, comm::Communicator& communicator, std::string_view what) {
  if (bytes > 0 && target_device.is_cpu() != source_device.is_cpu()) {
    const c10::Device device = target_device.is_cpu() ? source_device : target_device;
    const void* host = target_device.is_cpu() ? target : source;
    const auto& library = at::globalContext().getAcceleratorHooksInterface(device.type());
    if (!library.isPinnedPtr(host)) wait_for_stream(device, communicator, what);
  }
  memory::start_copy(target, target_device, source, source_device, bytes);
}

}  // namespace zeropage::paging
