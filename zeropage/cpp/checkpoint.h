/// \file
/// What Engine::save_checkpoint and Engine::load_checkpoint take and give. The files are Python's as well: either
/// language goes on from what the other has saved (docs/checkpoint-format.md).
#pragma once

#include <ATen/core/Tensor.h>

#include <map>
#include <optional>
#include <string>

namespace zeropage {

/// What a program wants back from `load_checkpoint`. To Python both are one dict.
struct ClientState {
  std::string json = "{}";  ///< an object, of anything that JSON can hold
  std::map<std::string, at::Tensor> tensors{};
};

struct SaveOptions {
  std::optional<std::string> tag{};        ///< absent: global_step<N>
  ClientState client_state{};              ///< rank 0's is kept
  bool save_latest = true;                 ///< false: loading without a tag does not find it
  bool exclude_frozen_parameters = false;  ///< leave out parameters that are not trained
};

struct LoadOptions {
  std::optional<std::string> tag{};  ///< absent: the newest
  bool load_module_strict =
      true;  ///< false: parameters and buffers that only one side has are left alone, with a warning
  bool load_optimizer_states =
      true;  ///< false: moments, step counts, hyperparameters, loss scale and random generators stay
             ///< as they are, and fp32 masters start from the loaded values
  bool load_lr_scheduler_states = true;  ///< false: the configured schedule stays where it is
  bool load_module_only = false;         ///< parameters and buffers alone
};

struct LoadedCheckpoint {
  std::string path;
  ClientState client_state;  ///< of a dict that Python saved: JSON's part of it, and the tensors at its top level
};

}  // namespace zeropage
