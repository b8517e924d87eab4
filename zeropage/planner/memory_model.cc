#include "zeropage/planner/memory_model.h"

#include <algorithm>

#include "zeropage/base/checked.h"
#include "zeropage/layout/layout.h"
#include "zeropage/layout/whole_pages.h"
#include "zeropage/planner/time_model.h"

namespace zeropage::planner {
namespace {

constexpr std::int64_t kReductionsAhead = 2;       // reduce::Reducer::kMaxInFlight
constexpr std::int64_t kTensorBuffers = 16 << 20;  // io::Scratch::kMemoryBytes, for state of PyTorch's on a drive
constexpr const char* kMemoryOfPlan = "memory of the plan";

/// `pages` pages of optimizer state, as one rank updates them.
std::int64_t state_buffer_bytes(const Request& request, const Strategy& strategy, std::int64_t pages) {
  const std::int64_t ranks = strategy.stage == 0 ? 1 : request.state_ranks(strategy.stage);
  const std::int64_t numel = ceil_div(page_numel(request, strategy.stage), ranks);
  return checked_mul(pages * engine_element_bytes(request.optimizer, request.precision), numel, kMemoryOfPlan);
}

/// Gradients that are being reduced.
std::int64_t bucket_bytes(const Request& request, const Strategy& strategy) {
  const std::int64_t page = page_numel(request, strategy.stage);
  const std::int64_t world = request.state_ranks(strategy.stage);
  const std::int64_t ahead = world > 1 ? kReductionsAhead : 0;
  if (strategy.stage >= 2)
    return checked_mul((1 + ahead) * page, element_bytes(formula::compute_dtype(request.precision)), kMemoryOfPlan);
  const bool sums_in_fp32 =
      strategy.stage == 1 && request.precision != config::Precision::kFp32 && request.accumulation_steps == 1;
  return sums_in_fp32 ? checked_mul(ahead * 4, page, kMemoryOfPlan) / world : 0;
}

/// Buffers for pages that are gathered in 8 bits, and for gradients that are sent and received in 4 bits.
std::int64_t wire_bytes(const Request& request, const Strategy& strategy) {
  const std::int64_t page = page_numel(request, strategy.stage);
  double bytes = 0;
  if (request.gathers_in_8_bits(strategy.stage)) {
    const std::int64_t paged_numel = request.model.total_numel - request.model.persistent_numel;
    bytes += kBytesIn8Bits * static_cast<double>(std::min(config::Zero{}.prefetch_bucket_numel + page, paged_numel));
  }
  if (request.reduces_in_4_bits(strategy.stage)) {
    bytes += kBytesIn4Bits * static_cast<double>(2 * (1 + kReductionsAhead)) * static_cast<double>(page);
  }
  return static_cast<std::int64_t>(bytes);
}

/// What an optimizer of PyTorch keeps, and its copies of values during an update. Both are in the memory of the
/// masters.
void add_torch_optimizer(const Request& request, const Strategy& strategy, MemoryEstimate& memory) {
  if (!request.optimizer.by_torch) return;
  const int world = request.state_ranks(strategy.stage);
  const std::int64_t kept = kept_bytes(request.optimizer, request.model, strategy.stage, world);
  // Sums of several ranks are fp32 and replace the 16-bit gradients of the page.
  const bool fp32_gradients = request.precision == config::Precision::kFp32 || request.accumulation_steps > 1 ||
                              strategy.stage >= 2 || (strategy.stage == 1 && world > 1);
  const std::int64_t given = checked_mul(
      fp32_gradients ? 4 : 8, updated_numel(request.model.trainable_numel, strategy.stage, world), kMemoryOfPlan);
  memory.update = given;
  if (strategy.optimizer == StateMemory::kDevice) {
    memory.state.optimizer += kept;
    return;
  }
  const bool on_disk = strategy.optimizer == StateMemory::kDisk;
  memory.host += given;
  if (on_disk) memory.host += kTensorBuffers;
  // Muon reads the state of one parameter at a time, other objects all of it.
  if (!on_disk || !request.optimizer.is_muon()) memory.host += kept;
  if (on_disk) memory.disk += kept;
}

}  // namespace

std::int64_t page_numel(const Request& request, int stage) {
  const Model& model = request.model;
  std::int64_t numel = layout::default_page_numel(model.total_numel);
  if (request.optimizer.by_torch && stage > 0) {
    const std::int64_t fitted = layout::page_numel_for_whole_parameters(
        model.total_numel, model.largest_numel, request.state_ranks(stage), /*frames=*/stage >= 2);
    if (fitted > 0) numel = fitted;
  }
  return std::min(model.total_numel, std::max(numel, model.largest_numel));
}

MemoryEstimate estimate_memory(const Request& request, const Strategy& strategy) {
  const Model& model = request.model;
  const std::int64_t element = element_bytes(formula::compute_dtype(request.precision));
  const std::int64_t frozen_numel = model.total_numel - model.trainable_numel;
  MemoryEstimate memory;
  const bool offload_optimizer = strategy.optimizer != StateMemory::kDevice;
  const config::Offload defaults;
  formula::ParameterCounts counts{model.trainable_numel, frozen_numel, model.persistent_numel,
                                  offload_optimizer ? model.trainable_numel : 0};
  if (strategy.parameters == StateMemory::kDisk) {
    const std::int64_t in_memory =
        checked_mul(defaults.max_numel_in_cpu, request.state_ranks(strategy.stage), kMemoryOfPlan);
    counts.disk_numel = std::max<std::int64_t>(0, model.total_numel - model.persistent_numel - in_memory);
  }
  const formula::StateOptions options{
      .stage = strategy.stage,
      .world_size = request.state_ranks(strategy.stage),
      .precision = request.precision,
      .accumulation_steps = request.accumulation_steps,
      .keeps_gradients = !request.optimizer.by_torch,
      .optimizer_states = request.optimizer.states,
      .second_shard_ranks = request.second_shards(strategy),
      .offload_parameters = strategy.parameters != StateMemory::kDevice,
      .optimizer_on_disk = strategy.optimizer == StateMemory::kDisk,
      .gradients_on_disk = strategy.optimizer == StateMemory::kDisk && strategy.parameters == StateMemory::kDisk};
  const formula::PlacedBytes placed = formula::placed_state_bytes(counts, options);
  memory.state = placed.device;
  if (strategy.stage == 3 && (request.world_size() > 1 || strategy.parameters != StateMemory::kDevice)) {
    const std::int64_t paged_numel = model.total_numel - model.persistent_numel;
    memory.frames = element * std::min(config::Zero{}.max_live_numel, paged_numel);
  }
  memory.buckets = bucket_bytes(request, strategy) + wire_bytes(request, strategy);
  memory.host += placed.offloaded.optimizer;
  memory.host += placed.offloaded.parameters + placed.offloaded.gradients;
  memory.disk += placed.disk.total();
  if (strategy.optimizer == StateMemory::kDisk) {
    memory.host += state_buffer_bytes(request, strategy, config::Offload{}.optimizer_buffers);
  }
  if (is_updated_on_device(request, strategy)) {
    memory.buckets += state_buffer_bytes(request, strategy, formula::kStreamBuffers);
  } else if (strategy.optimizer == StateMemory::kHost && !request.optimizer.by_torch) {
    memory.undo_log = formula::default_undo_log_bytes(counts, options);
  }
  memory.host += memory.undo_log;
  add_torch_optimizer(request, strategy, memory);
  if (strategy.parameters == StateMemory::kDisk) {
    const std::int64_t shard_numel = ceil_div(page_numel(request, strategy.stage), request.state_ranks(strategy.stage));
    if (counts.disk_numel > 0) memory.host += defaults.parameter_buffers * element * shard_numel;
    if (strategy.optimizer == StateMemory::kDisk)
      memory.host += defaults.optimizer_buffers * 4 * shard_numel;  // gradients
  }
  return memory;
}

std::int64_t activation_bytes(const Request& request, bool checkpointing) {
  const Shape& shape = request.model.shape;
  const std::int64_t tokens = checked_mul(request.micro_batch, request.sequence, kMemoryOfPlan);
  const std::int64_t wider = element_bytes(formula::compute_dtype(request.precision)) / 2;
  const std::int64_t stream = checked_mul(checked_mul(tokens, shape.hidden, kMemoryOfPlan), wider, kMemoryOfPlan);
  const std::int64_t layer = checked_mul(34, stream, kMemoryOfPlan);
  const std::int64_t layers =
      checkpointing ? checked_add(checked_mul(2 * shape.layers, stream, kMemoryOfPlan), layer, kMemoryOfPlan)
                    : checked_mul(shape.layers, layer, kMemoryOfPlan);
  return checked_add(layers, checked_mul(checked_mul(8, tokens, kMemoryOfPlan), shape.vocabulary, kMemoryOfPlan),
                     kMemoryOfPlan);
}

}  // namespace zeropage::planner
