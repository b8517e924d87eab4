/// \file
/// The members of an engine. Its functions are defined by subject: engine.cc has the constructor and queries,
/// engine_backward.cc runs backwards, engine_step.cc the step, engine_client.cc the program's part of a step;
/// engine_checkpoint.cc saves and resumes, engine_access.cc gives users access to parameters.
#pragma once

#include "zeropage/engine/engine.h"

#include <atomic>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <string_view>

#include "zeropage/base/log.h"
#include "zeropage/engine/accumulation.h"
#include "zeropage/engine/agreement.h"
#include "zeropage/engine/background_save.h"
#include "zeropage/engine/checkpoint.h"
#include "zeropage/engine/client_values.h"
#include "zeropage/engine/gradient_views.h"
#include "zeropage/engine/lamb_update.h"
#include "zeropage/engine/model_state.h"
#include "zeropage/engine/page_update.h"
#include "zeropage/engine/parameter_values.h"
#include "zeropage/engine/reduce_policy.h"
#include "zeropage/engine/scheduled_groups.h"
#include "zeropage/engine/second_update.h"
#include "zeropage/engine/speculation.h"
#include "zeropage/engine/state_offloader.h"
#include "zeropage/engine/trace_recorder.h"
#include "zeropage/optim/loss_scale.h"
#include "zeropage/paging/function_observer.h"
#include "zeropage/reduce/backward_end.h"
#include "zeropage/reduce/reducer.h"

namespace zeropage::engine {

class Engine::Impl {
 public:
  Impl(std::vector<ParameterInput> inputs, std::vector<config::OptimizerParams> groups, const config::Config& config,
       std::shared_ptr<comm::Communicator> communicator, c10::Device device,
       std::shared_ptr<comm::Communicator> reductions, std::shared_ptr<comm::Communicator> saves);

  at::Tensor backward(const at::Tensor& loss, const BackwardOptions& options);
  at::Tensor scale_loss(const at::Tensor& loss);
  bool step(const ClientUpdate& caller);
  void zero_grad();
  void keep_parameters_only();
  void add_parameters(const std::vector<ParameterInput>& inputs, const std::vector<config::OptimizerParams>& groups);

  /// Collective. Errors: PeerError, when ranks have written different values into a parameter.
  void compare_writes();

  void release(std::int64_t ticket, int modifier_rank);

  std::vector<ClientSegment> begin_edit();
  void end_edit(const std::string& failure);
  double scale() const { return scaler_ ? scaler_->scale() : 1.0; }
  comm::Communicator& job() const { return communicator_->job(); }  // all ranks
  double divisor() const { return gradient_divisor(config_, job().size(), scale()); }
  void take_scheduled() { engine::take_scheduled(*schedule_, config_.optimizer.kind, groups_); }
  CheckpointedState checkpointed() { return {state_, steps_, *communicator_, config_, run_}; }
  formula::StateOptions formula() const {
    auto options = formula::StateOptions::from_config(config_, communicator_->size());
    options.second_shard_ranks = communicator_->nearby_size();
    return options;
  }
  checkpoint::TrainingState training() const;
  void begin_training_of(const checkpoint::Manifest& manifest);
  void forget_untrained(const checkpoint::Manifest& manifest);
  void resume(const checkpoint::TrainingState& training, const LoadOptions& options);
  Timeline* timeline() const { return recorder_.timeline().get(); }

  config::Config config_;
  TraceRecorder recorder_;
  std::shared_ptr<comm::Communicator> communicator_;  // of the ranks that the state is divided over
  c10::Device device_;
  std::shared_ptr<Ledger> ledger_;
  std::vector<config::OptimizerParams> groups_;
  ModelState state_;
  std::unique_ptr<reduce::Reducer> reducer_;
  std::unique_ptr<UpdatePass> update_pass_;
  std::unique_ptr<Speculation> speculation_;
  std::unique_ptr<StateOffloader> offloader_;
  std::unique_ptr<GradientViews> gradients_;
  std::unique_ptr<ParameterValues> values_;
  std::unique_ptr<optim::LossScaler> scaler_;
  std::unique_ptr<optim::LrSchedule> schedule_;
  std::unique_ptr<paging::FunctionObserver> observer_;
  std::vector<std::int64_t> steps_;  // per parameter: updates so far
  AccumulationWindow window_;
  std::int64_t global_steps_ = 0;
  std::int64_t skipped_steps_ = 0;
  std::int64_t consecutive_skips_ = 0;
  bool backward_failed_ = false;  // since the window began
  bool in_backward_ = false;      // of the engine itself
  reduce::BackwardEnd other_backward_;
  SecondUpdate second_update_{state_};
  std::int64_t backward_begin_ns_ = 0;
  std::shared_ptr<Impl*> self_ = std::make_shared<Impl*>(this);  // for graphs, which may outlive the engine
  WarnOnce warn_once_;
  StepResult last_;
  std::string failure_;  // of an update that began and did not end; empty while the state is consistent
  std::map<std::int64_t, std::set<int>> tickets_;
  std::int64_t next_ticket_ = 1;
  std::unique_ptr<ClientValues> edit_;  // open; else null
  std::shared_ptr<checkpoint::TrainingRun> run_ = std::make_shared<checkpoint::TrainingRun>();
  std::unique_ptr<BackgroundSave> background_save_;  // null: saves are finished when they return
  std::atomic<bool> stop_requested_{false};
  bool parameters_only_ = false;  // since keep_parameters_only: gradients and optimizer state are freed
  bool forward_begun_ = false;    // before_forward was called since the last micro step: that loss is to be scaled
  StepFlags flags_;               // from the last global check

  /// Waits until nothing uses the engine's memory any more. An error is only logged, because the memory is freed in any
  /// case.
  void wait_until_idle() noexcept;

  /// Errors: UsageError once an update has failed in the middle. Called by everything that uses or changes the state.
  void require_whole_state(std::string_view caller) const;

 private:
  bool open_backward();
  void begin_backward();
  void end_backward();
  void watch_backward(const std::function<void()>& begin);
  void before_gradient();
  float program_factor();
  void begin_training(const std::vector<int>& pages);
  std::unique_ptr<ClientValues> call(GlobalCheck& global_check, float gradient_scale, const ClientUpdate& caller);
  void change(const std::function<void()>& apply);
  GlobalCheck agree(bool calls);
  void apply(const GlobalCheck& global_check, float gradient_scale, const ClientValues* from_caller);
  void write(std::vector<int> pages, UpdateInputs& inputs);
  void count_skip(const GlobalCheck& global_check);
  void warn_of_second_update();
};

}  // namespace zeropage::engine
