#include "zeropage/cpp/autocast.h"

#include <ATen/autocast_mode.h>

#include "zeropage/cpp/engine_impl.h"

namespace zeropage {

Autocast::Autocast(at::DeviceType device, std::optional<at::ScalarType> dtype) : device_(device), active_(dtype) {
  if (!active_) return;
  enabled_before_ = at::autocast::is_autocast_enabled(device_);
  dtype_before_ = at::autocast::get_autocast_dtype(device_);
  at::autocast::set_autocast_enabled(device_, true);
  at::autocast::set_autocast_dtype(device_, *dtype);
  at::autocast::increment_nesting();
}

Autocast::~Autocast() {
  if (!active_) return;
  if (at::autocast::decrement_nesting() == 0) at::autocast::clear_cache();
  at::autocast::set_autocast_enabled(device_, enabled_before_);
  at::autocast::set_autocast_dtype(device_, dtype_before_);
}

Autocast Engine::autocast() {
  impl_->autocast_entered = true;
  return {device().type(), autocast_dtype()};
}

}  // namespace zeropage
