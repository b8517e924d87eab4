/// \file
/// The typed configuration: the values of `ds_config.json` after parsing, checking, and the batch rule. All other code
/// reads this and never JSON. There is one struct per supported section. The tables in `tables_*.cc` have the type,
/// default, range and one line of documentation of every key.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "zeropage/base/dtype.h"

namespace zeropage::config {

struct Batch {
  std::int64_t train_batch_size = 0;  ///< = micro * accumulation * world
  std::int64_t micro_batch_size = 0;
  std::int64_t accumulation_steps = 1;
  bool counted = true;  ///< managed_gradient_accumulation; false: every step() updates
};

enum class Precision { kFp32, kBf16, kFp16 };

/// The section data_types, except its key for gradients.
struct DataTypes {
  bool named = false;                     ///< the configuration sets the type of parameters
  std::optional<DType> buffers;           ///< buffer_dtype; absent: each keeps its own
  bool declared_in_fp32 = true;           ///< keep_in_fp32_modules "auto": what the model declares
  std::vector<std::string> in_fp32 = {};  ///< otherwise these patterns

  bool operator==(const DataTypes&) const = default;
};

struct LossScale {
  bool dynamic = true;
  double static_scale = 1.0;  ///< used when not dynamic
  int initial_power = 16;
  std::int64_t window = 1000;
  int hysteresis = 2;
  bool consecutive_hysteresis = false;
  double min_scale = 1.0;

  bool operator==(const LossScale&) const = default;
};

struct Gradients {
  double clipping = 0.0;  ///< largest global 2-norm; 0 = no clipping (as PyTorch; newer DeepSpeed clips at 1.0 then)
  bool prescale = false;
  double predivide_factor = 1.0;
  bool sum_instead_of_mean = false;          ///< gradient_allreduce_op "sum"
  std::optional<DType> accumulation_dtype;   ///< data_types.grad_accum_dtype
  std::optional<DType> communication_dtype;  ///< communication_data_type
  bool check_overflow = true;                ///< bf16.check_grad_overflow; fp16 always checks, fp32 never
  bool norm = true;                          ///< zero_optimization.compute_grad_norm

  bool operator==(const Gradients&) const = default;
};

/// The memory of offloaded state while it is not in use.
enum class OffloadDevice { kNone, kCpu, kNvme };

/// offload_optimizer and offload_param.
struct Offload {
  OffloadDevice optimizer = OffloadDevice::kNone;
  double optimizer_ratio = 1.0;  ///< share of the optimizer state that is offloaded
  bool pin_optimizer = true;
  std::vector<std::string> optimizer_folders = {};  ///< nvme_path
  std::int64_t optimizer_buffers = 4;
  OffloadDevice parameters = OffloadDevice::kNone;
  bool pin_parameters = true;
  std::vector<std::string> parameter_folders = {};
  std::int64_t parameter_buffers = 5;
  std::int64_t max_numel_in_cpu =
      1'000'000'000;  ///< elements of each rank's parameter shards that stay in host memory; the others are on the drive

  bool operator==(const Offload&) const = default;
};

struct Zero {
  int stage = 0;
  bool reduce_scatter = true;
  bool overlap_comm = true;
  std::int64_t reduce_bucket_numel = 500'000'000;
  std::int64_t allgather_bucket_numel = 500'000'000;
  std::int64_t prefetch_bucket_numel = 50'000'000;
  std::int64_t persistence_threshold_numel = 100'000;
  std::int64_t model_persistence_threshold_numel = INT64_MAX;
  std::int64_t max_live_numel = 1'000'000'000;
  std::int64_t max_reuse_distance_numel = 1'000'000'000;
  bool gather_16bit_weights_on_model_save = false;
  std::int64_t second_shard_ranks = 1;    ///< zero_hpz_partition_size; 1: there are no second shards
  std::int64_t shard_ranks = 0;           ///< zeropage.shard_ranks; 0: state is divided over all ranks
  bool quantized_weights = false;         ///< sharded parameters are gathered in 8 bits,
  bool quantized_frozen_weights = false;  ///< or only frozen ones
  bool quantized_gradients = false;       ///< reduced in 4 bits
  Offload offload = {};

  bool operator==(const Zero&) const = default;
};

/// kClient: an optimizer of torch.optim or of the program, which the Python layer runs on the elements that a rank
/// owns.
enum class OptimizerKind { kNone, kAdam, kAdamW, kLion, kAdagrad, kSgd, kLamb, kClient };

/// Hyperparameters of one parameter group, as torch.optim names them. Each optimizer reads its own.
struct OptimizerParams {
  double lr = 1e-3;
  double beta1 = 0.9;
  double beta2 = 0.999;
  double eps = 1e-8;
  double weight_decay = 0.0;
  bool bias_correction = true;
  bool decoupled_decay = true;  ///< Adam: as AdamW; false: L2 added to the gradient
  double momentum = 0.0;        ///< SGD, as the next two
  double dampening = 0.0;
  bool nesterov = false;
  double lr_decay = 0.0;  ///< Adagrad, as the next one
  double initial_accumulator_value = 0.0;
  double max_coeff = 10.0;  ///< Lamb, as the next two: limits of the trust ratio
  double min_coeff = 0.01;
  bool eps_inside_sqrt = false;

  bool operator==(const OptimizerParams&) const = default;
};

struct Optimizer {
  OptimizerKind kind = OptimizerKind::kNone;
  OptimizerParams params;

  bool operator==(const Optimizer&) const = default;
};

/// The largest number of values per element that an optimizer keeps in addition to the master.
inline constexpr int kMaxOptimizerStates = 2;

/// The type of these values; see optim/packed_state.h.
enum class StateDtype { kFloat32, kBFloat16, kInt8 };

/// Number of elements that share an exponent with kInt8.
inline constexpr std::int64_t kStateBlockNumel = 256;

/// Number of values per element that `optimizer` keeps. kNone counts as AdamW, which a program without a configured
/// optimizer gets.
int optimizer_state_count(const Optimizer& optimizer);

/// The names of these values in torch.optim, in their order. Null after the last.
std::array<const char*, kMaxOptimizerStates> optimizer_state_names(OptimizerKind kind);

enum class ScheduleKind { kNone, kWarmup, kWarmupDecay, kWarmupCosine, kOneCycle, kLrRangeTest };

/// The union of the five schedules' parameters; each schedule reads its own.
struct Schedule {
  ScheduleKind kind = ScheduleKind::kNone;
  // WarmupLR, WarmupDecayLR, WarmupCosineLR
  double warmup_min_lr = 0.0;
  std::optional<double> warmup_max_lr;  ///< absent: each group's own lr (WarmupDecayLR: .001)
  std::int64_t warmup_num_steps = 1000;
  bool warmup_linear = false;  ///< false: logarithmic
  std::int64_t total_num_steps = 0;
  double warmup_min_ratio = 0.0;
  double cos_min_ratio = 1e-4;
  // OneCycle
  double cycle_min_lr = 0.0;
  double cycle_max_lr = 0.0;
  double decay_lr_rate = 0.0;
  std::int64_t cycle_first_step_size = 2000;
  std::optional<std::int64_t> cycle_second_step_size;
  std::int64_t cycle_first_stair_count = 0;
  std::optional<std::int64_t> cycle_second_stair_count;
  std::int64_t decay_step_size = 0;
  bool cycle_momentum = true;
  double cycle_min_mom = 0.8;
  double cycle_max_mom = 0.9;
  double decay_mom_rate = 0.0;
  // LRRangeTest
  double range_test_min_lr = 1e-3;
  std::int64_t range_test_step_size = 2000;
  double range_test_step_rate = 1.0;
  bool range_test_staircase = false;
  std::int64_t last_batch_iteration = -1;

  bool operator==(const Schedule&) const = default;
};

enum class CommunicatorKind { kAuto, kSharedMemory, kC10d, kMpi };

/// Options of reads and writes of state on drives.
struct Aio {
  std::int64_t block_bytes = 1 << 20;
  std::int64_t queue_depth = 8;  ///< running requests per folder

  bool operator==(const Aio&) const = default;
};

/// Where optimizer state in host memory is updated; kAuto: see engine::is_updated_on_device.
enum class UpdatePlace : std::uint8_t { kAuto, kHost, kDevice };

/// The section "zeropage": keys that DeepSpeed does not have.
struct ZeropageKeys {
  std::int64_t page_numel = 0;  ///< 0: layout::default_page_numel
  std::int64_t timeout_ms = 120'000;
  CommunicatorKind communicator = CommunicatorKind::kAuto;
  bool deterministic_reduction =
      true;  ///< c10d: sum in rank order (all-to-all) even where a true reduce-scatter exists
  bool hierarchical_collectives = true;    ///< if there are several hosts
  bool observe_functions = true;           ///< first-step observer for custom autograd Functions
  std::int64_t max_consecutive_skips = 0;  ///< stop after so many skipped steps in a row; 0: only the loss-scale rule
  std::optional<std::int64_t> speculation_bytes =
      {};  ///< size of the undo log of updates before their global check; 0: no such updates
  bool async_save = false;
  UpdatePlace offloaded_update = UpdatePlace::kAuto;
  std::int64_t keep_last = 0;  ///< number of checkpoints to keep in a folder; 0: all
  bool allow_fallback = false;
  int replica_check_steps = 1000;      ///< compare whole pages of all ranks every so many steps; 0: never
  std::string preemption_folder = {};  ///< empty: SIGTERM is left alone
  double preemption_grace_s = 25.0;

  bool operator==(const ZeropageKeys&) const = default;
};

/// The section comms_logger.
struct CommsLog {
  bool enabled = false;
  bool verbose = false;
  bool debug = false;
  std::vector<std::string> operations;  ///< empty: all

  bool operator==(const CommsLog&) const = default;
};

/// What the engine records while it runs.
struct Observation {
  bool times = false;                     ///< whether the times of the parts of a step are needed
  std::optional<std::string> trace_file;  ///< zeropage.trace.file
  std::int64_t trace_first_step = 3;
  std::int64_t trace_steps = 1;
  CommsLog comms;

  bool operator==(const Observation&) const = default;
};

/// Values chosen for keys that are "auto", by full path.
using Planned = std::map<std::string, std::variant<std::int64_t, std::string>>;

struct Config {
  Batch batch;
  Precision precision = Precision::kFp32;
  DataTypes types;
  LossScale loss_scale;
  bool cast_inputs = false;             ///< fp16.auto_cast
  std::optional<DType> autocast_dtype;  ///< torch_autocast: of the forward's operators; the Python engine's
  bool fp32_masters = true;             ///< false: 16-bit parameters are their own masters, rounded stochastically
  Gradients gradients;
  Zero zero;
  Optimizer optimizer;
  StateDtype state_dtype = StateDtype::kFloat32;
  Schedule schedule;
  Aio aio;
  std::optional<std::int64_t> steps_per_print;
  std::optional<std::string> log_level;  ///< "debug" to "critical"; absent: leave the process's
  bool disable_python_gc = false;        ///< used by the Python engine
  bool dump_state = false;
  bool dataloader_drop_last = false;
  bool allow_untested_optimizer = false;
  ZeropageKeys zeropage;
  Observation observation;
  std::vector<std::string> automatic;    ///< keys that are "auto" until with_planned sets them; batch sizes follow from
                                         ///< each other, the others have their defaults until then
  std::vector<std::string> python_keys;  ///< keys that are set and that only the Python package uses
  std::string effective_json;  ///< every key with its effective value, in the order of the tables; printed and hashed

  /// Parses JSON text, checks every key, resolves the batch rule for `world_size` (0: leave the batch sizes
  /// unresolved). `origin` (a path, or "dict") is part of messages. Errors: ConfigError with key path, line, what was
  /// expected and the nearest known key. Cost: milliseconds.
  static Config from_json(const std::string& text, int world_size, const std::string& origin = "config");

  /// The same for a file. Errors: also IoError when it cannot be read.
  static Config from_file(const std::string& path, int world_size);

  /// The same document with values for the keys in `automatic`. The values must be in range.
  Config with_planned(const Planned& planned) const;

 private:
  std::string document_;
  std::string origin_;
  int world_size_ = 0;
};

}  // namespace zeropage::config
