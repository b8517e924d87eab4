/// \file
/// The scope that Engine::autocast returns.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

namespace zeropage {

/// While it lives, operators of this thread choose their types as torch_autocast says. It is for the forward; end it
/// before the backward. Scopes may be nested.
class [[nodiscard]] Autocast {
 public:
  Autocast(at::DeviceType device, std::optional<at::ScalarType> dtype);  ///< absent: leaves everything as it is
  ~Autocast();
  Autocast(const Autocast&) = delete;
  Autocast& operator=(const Autocast&) = delete;

 private:
  at::DeviceType device_;
  bool active_;
  bool enabled_before_ = false;
  at::ScalarType dtype_before_ = at::kFloat;
};

}  // namespace zeropage
