/// \file
/// The scope that Engine::autocast returns.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

namespace zeropage {

/// While it exists, operators of this thread choose their types according to torch_autocast. It is for the forward:
/// destroy it before the backward. Scopes may be nested.
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
