/// \file
/// The members of an Engine. This header is not installed.
#pragma once

#include "zeropage/engine/engine.h"

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "zeropage/comm/world.h"
#include "zeropage/config/config.h"
#include "zeropage/cpp/client_optimizer.h"
#include "zeropage/cpp/communicators.h"
#include "zeropage/cpp/engine.h"
#include "zeropage/cpp/model_tensors.h"
#include "zeropage/cpp/monitor.h"
#include "zeropage/report/progress.h"
#include "zeropage/session/losses.h"
#include "zeropage/session/preemption.h"
#include "zeropage/session/step_observer.h"

namespace zeropage {

class Engine::Impl {
 public:
  config::Config config;
  comm::World world;
  c10::Device device = at::kCPU;
  std::shared_ptr<comm::Communicator> communicator;
  bool has_optimizer = false;
  std::unique_ptr<cpp::ClientOptimizer> client;  // null: the engine updates itself
  cpp::ModelTensors model;
  std::map<std::string, std::vector<std::string>> aliases;  // other names of tied parameters
  std::shared_ptr<engine::Engine> core;
  std::optional<report::Progress> line;  // steps_per_print, on rank 0
  session::Losses losses;
  bool autocast_entered = false;
  std::optional<session::StepObserver> observer;
  Monitor monitor;

  /// Writes the optimizer step that has ended to files, monitors and the log.
  void tell_step(double lr);

  /// Runs one micro step with the current learning rates. Returns whether it was at a boundary.
  bool step();
  std::unique_ptr<session::Preemption> preemption;  // last: it ends before the core is destroyed
};

/// Step, loss, learning rate, units and loss scale of the last optimizer step.
report::ProgressSample progress_sample(const Engine& engine, double units_per_sample);

}  // namespace zeropage
