/// \file
/// The types of an engine's tensors by its configuration, as torch names them.
#pragma once

#include "zeropage/memory/torch_config.h"

#include <ATen/core/Tensor.h>

#include <optional>

#include "zeropage/config/config.h"

namespace zeropage::session {

struct DataTypes {
  at::ScalarType parameters;               ///< of the model, by the precision
  at::ScalarType accumulation;             ///< of gradients between the micro steps of a window
  at::ScalarType communication;            ///< of gradients between ranks
  std::optional<at::ScalarType> autocast;  ///< of the forward's operators; absent: no autocast
  std::optional<at::ScalarType> buffers;   ///< of floating-point buffers; absent: their own
};

DataTypes data_types(const config::Config& config);

}  // namespace zeropage::session
