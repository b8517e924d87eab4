#include "zeropage/planner/memory_model.h"

#include <algorithm>

#include "zeropage/base/checked.h"
#include "zeropage/layout/layout.h"
#include "zeropage/layout/whole_pages.h"
#include "zeropage/planner/time_model.h"

namespace zeropage::planner {
namespace {

constexpr std::int64_t kReductionsAhead = 2;  // reduce::Reducer::kMaxInFlight
constexpr const char* kMemoryOfPlan = "memory of the plan";

/// `pages` pages of optimizer state, as one rank updates them.
std::int64_t state_buffer_bytes(const Request& request, const Placement& placement, std::int64_t pages) {
  const std::int64_t ranks = placement.stage == 0 ? 1 : request.state_ranks(placement.stage);
  const std::int64_t numel = ceil_div(page_numel(request, placement.stage), ranks);
  return checked_mul(pages * engine_element_bytes(request.optimizer, request.precision), numel, kMemoryOfPlan);
}

/// Gradients that are being reduced.
std::int64_t bucket_bytes(const Request& request, const Placement& placement) {
  const std::int64_t page = page_numel(request, placement.stage);
  const std::int64_t world = request.state_ranks(placement.stage);
  const std::int64_t ahead = world > 1 ? kReductionsAhead : 0;
  if (placement.stage >= 2)
    return checked_mul((1 + ahead) * page, element_bytes(formula::compute_dtype(request.precision)), kMemoryOfPlan);
  const bool sums_in_fp32 =
      placement.stage == 1 && request.precision != config::Precision::kFp32 && request.accumulation_steps == 1;
  return sums_in_fp32 ? checked_mul(ahead * 4, page, kMemoryOfPlan) / world : 0;
}

/// Buffers for pages that are gathered in 8 bits, and for gradients that are sent and received in 4 bits.
std::int64_t wire_bytes(const Request& request, const Placement& placement) {
  const std::int64_t page = page_numel(request, placement.stage);
  double bytes = 0;
  if (request.gathers_in_8_bits(placement.stage)) {
    const std::int64_t paged_numel = request.model.total_numel - request.model.persistent_numel;
    bytes += kBytesIn8Bits * static_cast<double>(std::min(config::Zero{}.prefetch_bucket_numel + page, paged_numel));
  }
  if (request.reduces_in_4_bits(placement.stage)) {
    bytes += kBytesIn4Bits * static_cast<double>(2 * (1 + kReductionsAhead)) * static_cast<double>(page);
  }
  return static_cast<std::int64_t>(bytes);
}

/// What an optimizer of PyTorch keeps, and its copies of values during an update. Both are in the memory of the
/// masters.
void add_torch_optimizer(const Request& request, const Placement& placement, MemoryEstimate& memory) {
  if (!request.optimizer.by_torch) return;
  const int world = request.state_ranks(placement.stage);
  const std::int64_t kept = kept_bytes(request.optimizer, request.model, placement.stage, world);
  // Sums of several ranks are fp32 and replace the 16-bit gradients of the page.
  const bool fp32_gradients = request.precision == config::Precision::kFp32 || request.accumulation_steps > 1 ||
                              placement.stage >= 2 || (placement.stage == 1 && world > 1);
  const std::int64_t given = checked_mul(
      fp32_gradients ? 4 : 8, updated_numel(request.model.trainable_numel, placement.stage, world), kMemoryOfPlan);
  memory.update = given;
  if (placement.optimizer == Home::kDevice) {
    memory.state.optimizer += kept;
  } else {
    memory.host += kept + given;
  }
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

MemoryEstimate estimate_memory(const Request& request, const Placement& placement) {
  const Model& model = request.model;
  const std::int64_t element = element_bytes(formula::compute_dtype(request.precision));
  const std::int64_t frozen_numel = model.total_numel - model.trainable_numel;
  MemoryEstimate memory;
  const bool offload_optimizer = placement.optimizer != Home::kDevice;
  const config::Offload defaults;
  formula::ParameterCounts counts{model.trainable_numel, frozen_numel, model.persistent_numel,
                                  offload_optimizer ? model.trainable_numel : 0};
  if (placement.parameters == Home::kDisk) {
    const std::int64_t in_memory =
        checked_mul(defaults.max_numel_in_cpu, request.state_ranks(placement.stage), kMemoryOfPlan);
    counts.disk_numel = std::max<std::int64_t>(0, model.total_numel - model.persistent_numel - in_memory);
  }
  const formula::StateOptions options{
      .stage = placement.stage,
      .world_size = request.state_ranks(placement.stage),
      .precision = request.precision,
      .accumulation_steps = request.accumulation_steps,
      .keeps_gradients = !request.optimizer.by_torch,
      .optimizer_states = request.optimizer.states,
      .second_shard_ranks = request.second_shards(placement),
      .offload_parameters = placement.parameters != Home::kDevice,
      .optimizer_on_disk = placement.optimizer == Home::kDisk,
      .gradients_on_disk = placement.optimizer == Home::kDisk && placement.parameters == Home::kDisk};
  const formula::PlacedBytes placed = formula::placed_state_bytes(counts, options);
  memory.state = placed.device;
  if (placement.stage == 3 && (request.world_size() > 1 || placement.parameters != Home::kDevice)) {
    const std::int64_t paged_numel = model.total_numel - model.persistent_numel;
    memory.frames = element * std::min(config::Zero{}.max_live_numel, paged_numel);
  }
  memory.buckets = bucket_bytes(request, placement) + wire_bytes(request, placement);
  memory.host += placed.offloaded.optimizer;
  memory.host += placed.offloaded.parameters + placed.offloaded.gradients;
  memory.disk += placed.disk.total();
  if (placement.optimizer == Home::kDisk) {
    memory.host += state_buffer_bytes(request, placement, config::Offload{}.optimizer_buffers);
  }
  if (is_updated_on_device(request, placement)) {
    memory.buckets += state_buffer_bytes(request, placement, formula::kStreamBuffers);
  } else if (placement.optimizer == Home::kHost && !request.optimizer.by_torch) {
    memory.undo_log = formula::default_undo_log_bytes(counts, options);
  }
  memory.host += memory.undo_log;
  add_torch_optimizer(request, placement, memory);
  if (placement.parameters == Home::kDisk) {
    const std::int64_t shard_numel =
        ceil_div(page_numel(request, placement.stage), request.state_ranks(placement.stage));
    if (counts.disk_numel > 0) memory.host += defaults.parameter_buffers * element * shard_numel;
    if (placement.optimizer == Home::kDisk) memory.host += defaults.optimizer_buffers * 4 * shard_numel;  // gradients
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
