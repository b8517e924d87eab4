/// \file
/// The engine of a C++ program: the same core as Python's, with methods of the same names. The program calls its module
/// as before; the engine takes over the module's parameters in place.
///
/// Not thread-safe: only one thread may use an engine.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "zeropage/cpp/autocast.h"
#include "zeropage/cpp/checkpoint.h"
#include "zeropage/cpp/config.h"
#include "zeropage/cpp/gathered.h"
#include "zeropage/cpp/monitor.h"
#include "zeropage/cpp/options.h"
#include "zeropage/cpp/report.h"

namespace torch::nn {
class Module;
}

namespace zeropage {

/// The scope that Engine::no_sync returns. It does nothing.
struct [[nodiscard]] NoSync {
  ~NoSync() {}
};

/// The kinds of state that Engine::offload_states moves.
struct OffloadedStates {
  bool optimizer_states = true;  ///< masters and moments
  bool gradients = true;         ///< buffers of gradients
  bool parameters = true;
};

class Engine {
 public:
  class Impl;

  /// Ends training; not collective. The module keeps its values. Sharded parameters stay sharded, and operators on all
  /// ranks gather them as before, until they are destroyed or another `initialize` takes the module over.
  ~Engine();

  /// The engine that was moved from is empty: every call is a UsageError.
  Engine(Engine&&) noexcept;
  Engine& operator=(Engine&&) noexcept;

  /// Ends training and makes the module's parameters plain tensors, whole on every rank, in the types of the
  /// computation. Collective. The engine is empty afterwards. Memory: the sharded parameters, whole. Errors:
  /// CheckpointError of a running save (the module is released nevertheless), PeerError, TimeoutError.
  void release();

  // -- the loop

  /// Finds parameters that were replaced since the last step (`p.set_data(...)`). Without an optimizer it also ends a
  /// pass, so call it before each forward of an evaluation. Otherwise it is not needed.
  void before_forward();

  /// The scope in which the forward runs when torch_autocast is enabled; without that it changes nothing.
  ///     const auto loss = [&] { auto scope = engine.autocast(); return model->forward(batch); }();
  Autocast autocast();

  /// Runs the backward of a scalar loss; returns the loss divided by the accumulation steps. Errors: UsageError (also
  /// when torch_autocast is enabled and no forward was in the scope of `autocast`), errors of the graph, PeerError,
  /// TimeoutError.
  at::Tensor backward(const at::Tensor& loss, bool retain_graph = false, bool scale_wrt_gas = true);

  /// For `scale(loss).backward()`: the loss times the loss scale of fp16. The backward of the result is equivalent to
  /// `backward(loss)`.
  at::Tensor scale(const at::Tensor& loss);

  /// Ends a micro step; at an accumulation boundary updates the parameters and advances the learning rate. All ranks
  /// apply it, or none. Errors: UsageError (no optimizer, no backward before), PeerError, TimeoutError. With
  /// zeropage.preemption_folder: Preempted on all ranks after the step in which one of them got SIGTERM, after all have
  /// saved; its `exit_code` is 0.
  void step();

  /// One step of LBFGS (Options::optimizer), which evaluates the loss as often as it needs: `closure` returns the loss
  /// of this rank's batch, and the engine does the rest, including `zero_grad` and `backward`. Returns the first loss,
  /// the mean over ranks. Errors: as `step`.
  at::Tensor step(const std::function<at::Tensor()>& closure);

  /// Discards the gradients so far and starts the accumulation window again. `step` calls it after an update.
  void zero_grad();

  bool is_gradient_accumulation_boundary() const;  ///< whether the next `step` updates the parameters
  void set_gradient_accumulation_boundary(std::optional<bool> is_boundary);  ///< nullopt: count micro steps again
  NoSync no_sync();  ///< several backwards for one `step`, at every stage; gradients accumulate without it, too

  bool was_step_applied()
      const;  ///< whether the last `step` updated: it was at a boundary and was not skipped because of an overflow
  std::optional<double> get_global_grad_norm()
      const;  ///< norm before clipping, of the last boundary step since the start or load
  double mean_loss()
      const;  ///< mean of this rank's losses since the last update (of the last update, directly after it)

  // -- parameters and memory

  /// Makes these parameters whole on every rank, until the result is destroyed: for code that bypasses the dispatcher
  /// (data_ptr). `modifier_rank`: at the end every rank takes that rank's values (collective). Without it each rank
  /// keeps the values that it wrote, which must be the same on all ranks. Errors: UsageError for tensors that are not
  /// parameters of the engine.
  Gathered gathered(const std::vector<at::Tensor>& parameters, std::optional<int> modifier_rank = std::nullopt);

  /// Trains more parameters from now on, as a group of their own: those of a layer that the module got after
  /// `initialize`. Collective, between updates. They get rank 0's values and the configured precision. With
  /// Options::optimizer only `lr` may be given; for the other hyperparameters the object's defaults are used. Errors:
  /// UsageError (none given, or during an update), PeerError (ranks differ), ConfigError.
  void add_parameters(const ParameterGroup& group);

  /// Full and local values, with the same names as in Python (docs/gradients.md): fp32 values, the mean gradient
  /// between the last backward of a window and `step`, and states of the optimizer ("exp_avg"). The returned tensors
  /// are new; undefined if there is no value. Full ones have the parameter's shape and are collective; local ones are
  /// this rank's elements, flat. Values that are set must be the same on all ranks. Errors: UsageError (not the
  /// engine's parameter, no such state, another shape), PeerError, TimeoutError, IoError.
  at::Tensor safe_get_full_fp32_param(const at::Tensor& parameter);
  at::Tensor safe_get_full_grad(const at::Tensor& parameter);
  at::Tensor safe_get_full_optimizer_state(const at::Tensor& parameter, const std::string& state);
  void safe_set_full_fp32_param(const at::Tensor& parameter, const at::Tensor& value);
  void safe_set_full_grad(const at::Tensor& parameter, const at::Tensor& value);
  void safe_set_full_optimizer_state(const at::Tensor& parameter, const at::Tensor& value, const std::string& state);
  at::Tensor safe_get_local_fp32_param(const at::Tensor& parameter);
  at::Tensor safe_get_local_grad(const at::Tensor& parameter);
  at::Tensor safe_get_local_optimizer_state(const at::Tensor& parameter, const std::string& state);
  void safe_set_local_fp32_param(const at::Tensor& parameter, const at::Tensor& value);  ///< collective
  void safe_set_local_grad(const at::Tensor& parameter, const at::Tensor& value);
  void safe_set_local_optimizer_state(const at::Tensor& parameter, const at::Tensor& value, const std::string& state);

  DiskTraffic disk_traffic() const;    ///< traffic of this rank so far
  MemoryReport memory_report() const;  ///< counted bytes of every rank, and those of the formula; collective
  void print_memory_table() const;     ///< prints it on rank 0; collective
  void empty_partition_cache();        ///< frees cached frames and pages

  /// Moves state to the host until `reload_states`, to free memory of the device. Until then training and reads of
  /// parameters are errors. Collective, between updates. pin_memory: page-locked host memory, where there is a GPU.
  /// Errors: UsageError.
  void offload_states(const OffloadedStates& include = {}, bool pin_memory = true);
  void reload_states();  ///< ends `offload_states`; collective

  // -- monitoring

  Monitor& monitor();                 ///< receives the metrics; programs may write their own to it
  std::string comms_summary() const;  ///< this rank's collectives by operation and size; empty when nothing is recorded

  // -- checkpoints

  /// Saves the complete training state as `save_dir/tag`. Collective; returns the path of the checkpoint. With
  /// zeropage.async_save it returns when the state is copied. If the rest of the save fails, the next `step`, save or
  /// `wait_for_checkpoint` throws. Errors: CheckpointError (on every rank, with the failures of all; training can
  /// continue), UsageError (between micro steps).
  std::string save_checkpoint(const std::string& save_dir, const SaveOptions& options = {});

  void wait_for_checkpoint();  ///< waits for a running save. Errors: the CheckpointError of that save

  /// Writes parameters and buffers as one safetensors file in the types of the computation, tied parameters once.
  /// Collective; no rank ever holds the whole model. Errors: UsageError (a name that does not end in .safetensors),
  /// CheckpointError on every rank.
  void save_16bit_model(const std::string& save_dir, const std::string& save_filename = "model.safetensors",
                        bool exclude_frozen_parameters = false);

  /// Resumes from a checkpoint of `load_dir`; nullopt when there is none. Any world size and stage can load the
  /// checkpoints of any other. Collective. Errors: CheckpointError on every rank; the engine is then unchanged.
  std::optional<LoadedCheckpoint> load_checkpoint(const std::string& load_dir, const LoadOptions& options = {});

  // -- ranks, batch sizes

  int global_rank() const;
  int local_rank() const;
  int world_size() const;
  int dp_world_size() const;  ///< the same as world_size
  int mp_world_size() const;  ///< 1
  at::Device device() const;
  void barrier();                        ///< returns when all ranks have called it. Errors: PeerError, TimeoutError
  double mean_over_ranks(double value);  ///< for example of a validation loss; collective
  at::Tensor mean_over_ranks(
      const at::Tensor& values);  ///< elementwise, of few values, in double on the CPU; collective

  std::int64_t train_batch_size() const;
  std::int64_t train_micro_batch_size_per_gpu() const;
  std::int64_t gradient_accumulation_steps() const;
  std::tuple<std::int64_t, std::int64_t, std::int64_t> get_batch_info() const;  ///< train, micro, accumulation steps
  void set_train_batch_size(std::int64_t train_batch_size);                     ///< changes the accumulation steps
  void set_train_micro_batch_size(std::int64_t micro_batch_size);

  // -- optimizer, schedule, precision

  bool has_optimizer() const;
  std::optional<std::string> optimizer_name() const;       ///< "adamw"; nullopt: none
  std::optional<std::string> scheduler_name() const;       ///< name of the configured schedule: "WarmupLR"
  std::vector<double> get_lr() const;                      ///< one per group
  void set_lr(double lr);                                  ///< for all groups, from the next step on
  void set_lr(const std::vector<double>& lrs);             ///< one per group
  std::vector<std::pair<double, double>> get_mom() const;  ///< per group: betas; SGD: momentum and 0; Adagrad: zeros
  std::int64_t last_batch_iteration() const;               ///< of the configured schedule
  void set_last_batch_iteration(std::int64_t iteration);   ///< jumps; UsageError when no schedule is configured
  double gradient_clipping() const;
  double gradient_predivide_factor() const;
  bool prescale_gradients() const;
  bool fp16_enabled() const;
  bool bfloat16_enabled() const;
  bool fp16_auto_cast() const;  ///< the program must cast the inputs, because it calls its module without the engine
  std::optional<at::ScalarType> autocast_dtype() const;  ///< type of torch_autocast, if it is enabled
  std::pair<at::ScalarType, at::ScalarType> get_data_types()
      const;  ///< types of parameters and of accumulated gradients
  at::ScalarType communication_data_type() const;
  double loss_scale() const;
  bool dynamic_loss_scale() const;
  bool zero_optimization() const;
  int zero_optimization_stage() const;
  bool zero_gather_16bit_weights_on_model_save() const;

  // -- progress

  std::int64_t global_steps() const;  ///< boundary steps, applied or skipped
  std::int64_t global_samples() const;
  std::int64_t micro_steps() const;  ///< calls of `step`
  std::int64_t skipped_steps() const;
  std::optional<std::int64_t> steps_per_print() const;
  bool dump_state() const;
  const std::string& config() const;  ///< every key with its effective value, as JSON

 private:
  friend Engine initialize(torch::nn::Module& model, const Config& config, const Options& options);
  explicit Engine(std::unique_ptr<Impl> impl);
  void end_step(bool was_boundary);

  struct Owned {
    std::unique_ptr<Impl> impl;
    Impl* operator->() const;  // errors: UsageError when it is empty
  };
  Owned impl_;
};

/// Takes a module over: its parameters are cast to the configured precision, get rank 0's values, and are placed in
/// pages. Buffers are cast and get rank 0's values. Collective. Shared parameters count once. The engine shares the
/// ownership of a module that a shared_ptr owns (such as torch's ModuleHolder); of a module on the stack it keeps the
/// tensors. So either may be destroyed first. The environment variables of `zeropage`, torchrun, mpirun or srun
/// describe the ranks. Ranks on one host connect through shared memory. Ranks on several hosts connect through MPI if
/// mpirun or srun has started them; otherwise, and on GPUs, at MASTER_ADDR (comm/c10d/c10d_job.h).
/// Errors: ConfigError, IoError, PeerError (ranks differ; the message shows the first difference), TimeoutError.
Engine initialize(torch::nn::Module& model, const Config& config, const Options& options = {});

}  // namespace zeropage
