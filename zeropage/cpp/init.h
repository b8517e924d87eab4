/// \file
/// Builds a model that is larger than memory.
///
///     Model model = nullptr;
///     {
///       zeropage::Init scope(config);
///       model = Model(options);  // any code; the same on all ranks
///     }
///     auto engine = zeropage::initialize(*model, config);
#pragma once

#include <memory>

#include "zeropage/cpp/config.h"
#include "zeropage/cpp/options.h"

namespace torch::nn {
class Module;
}

namespace zeropage {

/// While it exists, tensors that this thread makes are kept within the limit on live parameters
/// (`stage3_max_live_parameters`). Above the limit the least recently used ones are divided into shards, one per rank,
/// and operators gather them again. `initialize` takes the model's parameters over page by page, so no rank ever holds
/// the whole model. Every rank ends with rank 0's values. Ranks must run the same code until then. Raw pointers into
/// such tensors (`data_ptr`) need `gathered`.
class Init {
 public:
  /// Does nothing below stage 3, or with one rank. Otherwise it connects the ranks. `options`: communicator and device,
  /// as for `initialize`; tensors on other devices are not changed. Collective. Errors: ConfigError, IoError,
  /// PeerError, TimeoutError.
  explicit Init(const Config& config, const Options& options = {});
  ~Init();
  Init(const Init&) = delete;
  Init& operator=(const Init&) = delete;

  /// Takes over the parameters of a module that was made outside, as if it had been made here. All ranks must call it.
  /// Errors: PeerError, TimeoutError.
  void adopt(const torch::nn::Module& module);

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;  // null: nothing to do
};

}  // namespace zeropage
