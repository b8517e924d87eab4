/// \file
/// Arguments and results of Engine::save_checkpoint and Engine::load_checkpoint. Python uses the same files: each
/// language can resume from checkpoints of the other (docs/checkpoint-format.md).
#pragma once

#include <ATen/core/Tensor.h>

#include <map>
#include <optional>
#include <string>

namespace zeropage {

/// Values of the program that `load_checkpoint` returns. In Python both are one dict.
struct ClientState {
  std::string json = "{}";  ///< a JSON object
  std::map<std::string, at::Tensor> tensors{};
};

struct SaveOptions {
  std::optional<std::string> tag{};        ///< absent: global_step<N>
  ClientState client_state{};              ///< only rank 0's is saved
  bool save_latest = true;                 ///< false: loading without a tag does not find it
  bool exclude_frozen_parameters = false;  ///< leave out frozen parameters
};

struct LoadOptions {
  std::optional<std::string> tag{};  ///< absent: the newest
  bool load_module_strict =
      true;  ///< false: parameters and buffers that only one side has are left alone, with a warning
  bool load_optimizer_states =
      true;  ///< false: moments, step counts, hyperparameters, loss scale and random generators stay
             ///< unchanged, and fp32 masters start from the loaded values
  bool load_lr_scheduler_states = true;  ///< false: the configured schedule stays where it is
  bool load_module_only = false;         ///< only parameters and buffers
};

struct LoadedCheckpoint {
  std::string path;
  ClientState client_state;  ///< if Python saved a dict: its JSON values, and the tensors at its top level
};

}  // namespace zeropage
