/// \file
/// What an Engine holds. Not installed.
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
  std::map<std::string, std::vector<std::string>> aliases;  // further names of tied parameters
  std::shared_ptr<engine::Engine> core;
  std::optional<report::Progress> line;  // steps_per_print, on rank 0
  std::int64_t micro_batch_size = 0;
  std::vector<at::Tensor> losses;  // since the last update
  bool autocast_entered = false;
  std::optional<session::StepObserver> observer;
  Monitor monitor;

  /// Tells files, monitors and the log of the optimizer step that has ended.
  void tell_step(double lr);
  std::optional<double> known_loss()
      const;  ///< mean since the last update; absent where the program runs the backward itself

  /// One micro step with the rates of now. Returns whether it was at a boundary.
  bool step();
  std::unique_ptr<session::Preemption> preemption;  // last: it ends before the core goes
};

/// The type the model computes with.
inline at::ScalarType parameter_type(config::Precision precision) {
  return scalar_type_of(formula::compute_dtype(precision));
}

/// Step, loss, learning rate, units and loss scale of the last optimizer step.
report::ProgressSample progress_sample(const Engine& engine, double units_per_sample);

}  // namespace zeropage
