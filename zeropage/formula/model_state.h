/// \file
/// How many bytes of model state a rank holds. The memory table prints measured bytes next to this formula.
///
///   kind        fp32      bf16, fp16                      sharded from
///   parameters  4         2                               stage 3 (persistent parameters never)
///               and the same once more, divided by N,      zero_hpz_partition_size N
///   gradients   stages 0, 1: the compute type, or with accumulation the accumulation type (fp32 unless configured);
///               stages 2, 3: fp32, 4 bytes; the compute   stage 2
///               type where one rank keeps them as made
///   optimizer   4 k       4 + 4 k (fp32 master)           stage 1
///
/// Moments in bf16 take 2 bytes each instead of 4, in int8 1 and 1/256.
///
/// With 16-bit master weights and gradients there are no 4 bytes of the master, and all gradients have the compute
/// type.
///
/// k: values that the optimizer keeps per parameter (Adam and AdamW 2, Lion and Adagrad 1, SGD 1 with momentum or 0).
/// Frozen parameters have parameters only. In fp32 the parameter is its own master.
///
/// Offloaded state is not on the device: the optimizer state of offloaded pages, and from stage 2 on also their shards
/// of gradients, which are kept with it until the update. Offloaded parameters are the sharded ones of stage 3.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <vector>

#include "zeropage/base/dtype.h"
#include "zeropage/config/config.h"
#include "zeropage/layout/layout.h"

namespace zeropage::formula {

/// Bytes on one rank.
struct StateBytes {
  std::int64_t parameters = 0;
  std::int64_t gradients = 0;
  std::int64_t optimizer = 0;

  std::int64_t total() const { return parameters + gradients + optimizer; }
  StateBytes operator+(const StateBytes& other) const {
    return {parameters + other.parameters, gradients + other.gradients, optimizer + other.optimizer};
  }
  bool operator==(const StateBytes&) const = default;
};

/// Bytes of one rank that are on the device, and those that are offloaded.
struct PlacedBytes {
  StateBytes device;
  StateBytes offloaded;  ///< on the host
  StateBytes disk = {};
};

/// The type that a model of this precision computes in, and that its parameters have.
DType compute_dtype(config::Precision precision);

/// Elements of a model, padded or not.
struct ParameterCounts {
  std::int64_t trainable_numel = 0;
  std::int64_t frozen_numel = 0;
  std::int64_t persistent_numel = 0;  ///< elements of the two counts above that stay whole at stage 3
  std::int64_t offloaded_numel = 0;   ///< trainable ones whose optimizer state is offloaded
  std::int64_t disk_numel = 0;        ///< elements whose parameters are on a drive
};

/// What the bytes depend on in addition to the counts.
struct StateOptions {
  int stage = 0;
  int world_size = 1;  ///< ranks that the state is divided over
  config::Precision precision = config::Precision::kFp32;
  std::int64_t accumulation_steps = 1;
  std::optional<DType> accumulation_dtype = std::nullopt;  ///< data_types.grad_accum_dtype
  DType shard_dtype = DType::kFloat32;  ///< of sharded gradients; published tables count the compute type
  bool keeps_gradients = true;          ///< see below; only at one rank
  bool fp32_masters = true;             ///< of 16-bit parameters
  int optimizer_states = 2;             ///< k above
  config::StateDtype state_dtype = config::StateDtype::kFloat32;
  std::int64_t second_shard_ranks =
      1;  ///< number of nearby ranks that keep each page once more at stage 3; 1: no second shards
  bool offload_parameters = false;
  bool optimizer_on_disk = false;  ///< the offloaded part of it
  bool gradients_on_disk = false;  ///< the same, of gradients

  /// The options of `config` for `world_size` ranks; with zeropage.shard_ranks for a group of them.
  static StateOptions from_config(const config::Config& config, int world_size);
};

/// Buffers of a device through which optimizer state that the host keeps is updated there: one is filled while the
/// other one is emptied.
inline constexpr int kStreamBuffers = 2;

/// Per page of `layout`: whether its optimizer state is offloaded. The last trainable pages are offloaded, as many as
/// are closest to `share` of the elements. In a backward the gradients of the first pages are complete last, and the
/// step would have to wait for an offloaded update of them.
std::vector<bool> offloaded_pages(const layout::Layout& layout, double share);

/// The share of the optimizer state that `config` offloads.
double offloaded_share(const config::Config& config);

/// Whether a single rank at stages 2 and 3, where nothing is sharded, keeps gradients in the tensors that autograd
/// makes: when no gradients are accumulated, and frames and shards would not round them to another type. Optimizers of
/// torch get whole pages.
bool keeps_gradients(const config::Config& config);

/// Whether gradients are on the drive, too: when neither parameters nor optimizer state are kept in memory, gradients
/// are not either.
bool gradients_on_disk(const config::Config& config);

/// Elements of `layout`, with the padding of its pages or without. `offloaded`: for each page, whether its optimizer
/// state is offloaded. Elements of type kOther are not counted, because no formula covers them. `counted`: which pages
/// to count; empty: all. Cost: linear in pages and parameters.
ParameterCounts count_parameters(const layout::Layout& layout, const std::vector<bool>& offloaded, bool padded,
                                 const std::function<bool(const layout::Page&)>& counted = nullptr);

/// The formula above, device and offloaded bytes together; a shard is the count divided by the world, rounded up.
/// Errors: ConfigError for a stage outside 0-3, a world below 1, or sizes beyond 63 bits.
StateBytes model_state_bytes(const ParameterCounts& counts, const StateOptions& options);

/// The same bytes, separately for the device and the offloaded part.
PlacedBytes placed_state_bytes(const ParameterCounts& counts, const StateOptions& options);

/// Default size of the undo log for updates of state in host memory that overlap with the backward of a device
/// (zeropage.speculation_bytes): a quarter of what all these updates would need, which is that state and the new
/// parameters. So a quarter of the update is hidden for a quarter more memory.
/// Errors: as model_state_bytes.
std::int64_t default_undo_log_bytes(const ParameterCounts& counts, const StateOptions& options);

}  // namespace zeropage::formula
