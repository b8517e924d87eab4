/// \file
/// What an Engine holds. Not installed.
#pragma once

#include "zeropage/engine/engine.h"

#include <memory>
#include <optional>
#include <vector>

#include "zeropage/comm/world.h"
#include "zeropage/config/config.h"
#include "zeropage/cpp/communicators.h"
#include "zeropage/cpp/engine.h"
#include "zeropage/report/progress.h"

namespace zeropage {

class Engine::Impl {
 public:
  config::Config config;
  comm::World world;
  c10::Device device = at::kCPU;
  std::shared_ptr<comm::Communicator> communicator;
  std::shared_ptr<comm::Communicator> reductions;
  bool has_optimizer = false;
  std::unique_ptr<engine::Engine> core;
  std::optional<report::Progress> line;  // steps_per_print, on rank 0
  std::int64_t micro_batch_size = 0;
  std::int64_t accumulation_steps = 1;
  std::vector<at::Tensor> losses;  // since the last update
  std::int64_t steps_of_losses = 0;
};

/// Step, loss, learning rate, units and loss scale of the last optimizer step.
report::ProgressSample progress_sample(const Engine& engine, double units_per_sample);

}  // namespace zeropage
