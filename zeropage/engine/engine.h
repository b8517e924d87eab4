/// \file
/// The engine: takes a model's parameters, places their state according to the configuration, and runs backward and
/// step. The same class serves C++ programs and, through thin bindings, the Python package.
///
///     Engine engine(parameters, groups, config, communicator, device);
///     loss = model->forward(batch);  engine.backward(loss);  engine.step();
///
/// Not thread-safe: one thread drives an engine (autograd's own threads aside).
#pragma once

#include "zeropage/memory/torch_config.h"

#include <array>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "zeropage/base/ledger.h"
#include "zeropage/base/timeline.h"
#include "zeropage/comm/communicator.h"
#include "zeropage/config/config.h"
#include "zeropage/engine/client_update.h"
#include "zeropage/formula/model_state.h"
#include "zeropage/paging/pager.h"

namespace zeropage::checkpoint {
class Checkpoint;
}

namespace zeropage::engine {

class ParameterValues;
struct SaveOptions;
struct LoadOptions;
struct LoadReport;

/// One parameter of the model. The tensor stays the user's own object: the engine replaces its storage.
struct ParameterInput {
  std::string name;
  at::Tensor tensor;
  int group = -1;          ///< index into the groups, -1: no optimizer updates it
  bool keep_fp32 = false;  ///< it is fp32 at every precision; see data_types.h
  bool whole = false;      ///< its optimizer needs all of its elements; see layout/whole_pages.h
};

/// Options of `Engine::backward`.
struct BackwardOptions {
  bool retain_graph = false;
  bool scale_by_accumulation = true;  ///< divide the loss by gradient_accumulation_steps
};

/// Kinds of state that can be moved off the device temporarily.
struct StateKinds {
  bool optimizer = true;  ///< masters and moments
  bool gradients = true;  ///< their buffers
  bool parameters = true;
};

/// The result of the last step.
struct StepResult {
  bool applied = false;                 ///< the step was at an accumulation boundary and updated the parameters
  bool overflow = false;                ///< the last boundary step was skipped because a gradient was not finite
  std::optional<double> gradient_norm;  ///< of the last boundary step: global 2-norm before clipping
  float clip_coefficient = 1.0f;
  std::string overflow_parameter;  ///< when skipped: the first parameter with inf or nan on any rank
  int pages_ahead = 0;             ///< updates made here overlapped with the backward (zeropage.speculation_bytes) ...
  bool undone = false;             ///< ... and some were undone
};

class Engine {
 public:
  /// Collective. Casts floating parameters to the configured precision, gives every rank rank 0's values, and moves all
  /// state to its place. Peak memory: the model (its shards, if it was made in an Init scope) plus this rank's state
  /// plus one page.
  /// Errors: ConfigError (no parameters, wrong device, unsupported dtype, parameters that share memory), PeerError
  /// (ranks differ in configuration or model; the message shows the first difference).
  /// `reductions`: a second communicator for gradients. Transports with two-sided gathers need it, because the order of
  /// gathers and reductions in a backward may differ between ranks; it also lets the two overlap. null: one
  /// communicator is used for both. `saves`: a communicator for the thread of zeropage.async_save, which needs it.
  Engine(std::vector<ParameterInput> parameters, std::vector<config::OptimizerParams> groups,
         const config::Config& config, std::shared_ptr<comm::Communicator> communicator, c10::Device device,
         std::shared_ptr<comm::Communicator> reductions = nullptr, std::shared_ptr<comm::Communicator> saves = nullptr);

  /// Ends training; not collective. Parameters keep their values. Sharded parameters stay sharded, and operators gather
  /// them as before, on all ranks in the same order, until they are destroyed or another engine takes them over; a call
  /// of `make_parameters_whole` before the end avoids that.
  ~Engine();
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  /// Call before each forward: adopts parameters that were replaced from outside (`p.data = ...`). Cost: nanoseconds
  /// per parameter.
  void before_forward();

  /// Runs the backward of `loss` (scalar), scaled for fp16 and by the accumulation steps. Gradients go to the engine.
  /// From the backward that completes an accumulation window until step() `p.grad` is the mean over ranks and micro
  /// batches, without the loss scale (gradient_views.h); else it is empty. Returns the loss divided by the accumulation
  /// steps. Errors: those of the graph, PeerError, TimeoutError.
  at::Tensor backward(const at::Tensor& loss, const BackwardOptions& options = {});

  /// For `scale(loss).backward()`: the loss times the loss scale. The backward of the result is equivalent to
  /// `backward(loss)`: the gradient of the result is divided by the accumulation steps. Errors: those of `backward`,
  /// when that backward runs.
  at::Tensor scale(const at::Tensor& loss);

  /// Ends a micro step. At an accumulation boundary: global check over all ranks, update, next learning rate; returns
  /// true. In between only counts; returns false. Errors: UsageError (no optimizer, no backward before), PeerError,
  /// TimeoutError, Error (loss scale exhausted). A step is applied by all ranks or by none; when a rank dies in the
  /// middle of the update, the others raise, and from then on their engines refuse everything except reading
  /// (UsageError: restart from a checkpoint). `update` runs the optimizer if the configuration's is kClient; otherwise
  /// it is called once before the update, without segments. Its exceptions are thrown here, and a PeerError on the
  /// other ranks: then no parameter has changed, gradients are dropped, and training can continue. See client_update.h
  /// for its cost.
  bool step(const ClientUpdate& update = nullptr);

  /// The segments that this rank updates, of the parameters that an optimizer has, in the order of the pages.
  std::vector<OwnedSegment> owned_segments() const;

  /// Copies of all masters that this rank updates, without gradients, which may be changed until `end_edit` puts them
  /// into effect. Between updates. Memory: 4 bytes per element. Errors: UsageError when an edit is open, IoError.
  std::vector<ClientSegment> begin_edit();

  /// Collective. Ends an edit: parameters get the new values on all ranks. If `failure` is not empty on some rank,
  /// nothing changes, and the ranks on which it is empty get a PeerError.
  void end_edit(const std::string& failure = {});

  /// Declares that writes to parameters since the last backward are intended, so that the step does not warn about
  /// them. An optimizer that evaluates the loss within its own step (LBFGS) makes such writes.
  void accept_writes();

  /// Drops gradients accumulated so far; the accumulation window begins again. Warns (once, on rank 0) when it drops
  /// successful micro steps: a loop that calls it before each of them would never update.
  void zero_grad();

  /// Returns when no overlapped update runs any more; step() does not need it. For tests and measurements.
  void wait_for_updates();

  /// Returns when the device has done all earlier work of the current stream, or of every stream; immediately on the
  /// CPU. Call it before a value is fetched, so that the message of an error has `what` it was, "the loss". Errors: as
  /// comm::poll_until.
  void wait_for_device(std::string_view what, bool every_stream = false) const;

  bool is_accumulation_boundary() const;
  void set_accumulation_boundary(std::optional<bool> boundary);  ///< nullopt: count micro steps again
  void set_accumulation_steps(std::int64_t steps);               ///< see AccumulationWindow
  std::int64_t accumulation_steps() const;
  bool window_is_new() const;                       ///< no backward has run since the last update
  std::int64_t micro_batch_size() const;            ///< samples of one rank in a micro step
  void set_micro_batch_size(std::int64_t samples);  ///< changes the train batch size; errors: UsageError below 1
  std::int64_t train_batch_size() const;            ///< samples of all ranks in an update

  /// Changes the accumulation steps from now on; the micro batch size stays the same. Errors: ConfigError unless it is
  /// a positive multiple of the ranks' micro batches.
  void set_train_batch_size(std::int64_t samples);

  /// Current hyperparameters, one entry per group; write to change them from the next step on.
  std::vector<config::OptimizerParams>& groups();

  /// Learning rates of the configured schedule for the next step; empty without a schedule.
  std::vector<double> scheduled_lrs() const;
  std::int64_t schedule_iteration() const;
  void set_schedule_iteration(std::int64_t iteration);

  double loss_scale() const;
  std::int64_t global_steps() const;  ///< boundary steps, applied or skipped
  std::int64_t skipped_steps() const;
  std::int64_t micro_steps() const;     ///< calls of step()
  std::int64_t global_samples() const;  ///< of all ranks, in all boundary steps
  const StepResult& last_step() const;

  /// Full and local values of parameters: in fp32, their mean gradients, the optimizer's state. Errors: UsageError when
  /// nothing may be read, for example while state is unloaded.
  ParameterValues& values();

  /// Collective, the last call: every rank gets every parameter in its own plain memory, also the sharded ones, and
  /// state moved by offload_states returns. Memory: all of the sharded parameters. Errors: PeerError, TimeoutError.
  void make_parameters_whole();

  /// Makes the pages of these parameters resident until `release`. Returns a ticket.
  std::int64_t gather(const std::vector<at::Tensor>& parameters);

  /// Ends training: frees all state except the parameters, which can be read and written as before, and which another
  /// engine may take over. Other functions than gather, release, drop_tensor and set_tensor raise a UsageError or must
  /// not be called afterwards. Not collective.
  void keep_parameters_only();

  /// Ends a gather. With `modifier_rank` >= 0 every rank gets that rank's values (collective); otherwise each rank
  /// keeps the values that it wrote, which must be the same everywhere.
  void release(std::int64_t ticket, int modifier_rank = -1);

  /// Collective, between updates: adds parameters of the model, or others, on separate pages, with rank 0's values.
  /// `groups`: the existing groups followed by new ones. Errors: UsageError (in the middle of an update, an existing
  /// name), PeerError (ranks differ), ConfigError, as the constructor's.
  void add_parameters(const std::vector<ParameterInput>& inputs, const std::vector<config::OptimizerParams>& groups);

  /// For `torch.utils.swap_tensors`, which needs the only reference to a parameter: `drop_tensor` drops its tensor,
  /// which keeps its values in separate memory; `set_tensor` then adopts the tensor that replaces it, with its values.
  /// Nothing else may be called in between.
  void drop_tensor(int parameter);
  void set_tensor(int parameter, const at::Tensor& tensor);

  /// Collective. Saves everything that resuming needs; returns the step's path. With zeropage.async_save it returns
  /// when the state is copied, after the previous save has ended. Errors: UsageError between the micro steps of an
  /// update (gradients are not saved), CheckpointError, also of the previous save; see save_state in `checkpoint.h`.
  std::string save_checkpoint(const SaveOptions& options);

  /// Waits until no save is in progress. Errors: CheckpointError of that save.
  void finish_save();

  /// Call at the end of a step, when all bookkeeping is done. Errors: CheckpointError, on every rank at the same step,
  /// when a save in the background has failed; the step is applied, and training can continue.
  void check_save();

  /// Asks all ranks to stop after the next boundary step. From any thread, also from a signal handler.
  void request_stop() noexcept;

  /// Whether some rank had been asked to stop at the last boundary step; the same on all ranks.
  bool stop_agreed() const;

  /// Collective. Opens the step to load from a folder, the same on all ranks: the tagged or the newest step; null when
  /// there is none. See find_checkpoint in `find_checkpoint.h`; zeropage.allow_fallback applies. Errors:
  /// CheckpointError.
  std::unique_ptr<checkpoint::Checkpoint> find_checkpoint(const std::string& folder,
                                                          const std::optional<std::string>& tag);

  /// Collective. Resumes from a step; existing gradients are dropped. Errors: CheckpointError; see load_state in
  /// `checkpoint.h`.
  LoadReport load_checkpoint(checkpoint::Checkpoint& step, const LoadOptions& options);

  /// Collective. Moves state from the device to the host until `reload_states`; until then the engine trains nothing
  /// and its parameters cannot be read. Cost: one copy. Errors: see StateOffloader.
  void offload_states(const StateKinds& which, bool pin_memory = true);
  void reload_states();

  /// Returns cached frames and evictable pages to the system.
  void trim_memory();

  const std::shared_ptr<Ledger>& ledger() const;
  paging::PagerStats pager_stats() const;
  io::MoverStats disk_traffic() const;                  ///< of this rank, so far
  std::vector<paging::PageCounts> page_counts() const;  ///< of paged pages

  /// The recorded times; null when the configuration does not enable any recording.
  std::shared_ptr<const Timeline> timeline() const;
  formula::PlacedBytes formula_bytes() const;                   ///< per rank, for this configuration
  formula::StateBytes formula_bytes_at_stage(int stage) const;  ///< with everything on the device
  const comm::Communicator& communicator() const;
  std::int64_t trainable_numel() const;
  std::int64_t page_count() const;

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace zeropage::engine
