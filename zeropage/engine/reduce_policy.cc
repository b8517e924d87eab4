#include "zeropage/engine/reduce_policy.h"

#include "zeropage/engine/disk_state_store.h"
#include "zeropage/engine/sharding.h"
#include "zeropage/formula/model_state.h"

namespace zeropage::engine {

bool scales_losses(const config::Config& config) {
  return config.precision == config::Precision::kFp16 || config.autocast_dtype == DType::kFloat16;
}

bool checks_overflow(const config::Config& config) {
  if (config.precision == config::Precision::kBf16) return config.gradients.check_overflow;
  return scales_losses(config);
}

reduce::ReducePolicy reduce_policy(const config::Config& config, const ModelState& state, int rank, c10::Device device,
                                   const std::shared_ptr<Ledger>& ledger) {
  const Sharding sharding = sharding_of_stage(config.zero.stage);
  reduce::ReducePolicy policy;
  policy.sharded = sharding.shard_gradients;
  policy.whole_result = !sharding.shard_optimizer;
  policy.reduce_scatter = config.zero.reduce_scatter;
  policy.coded = config.zero.quantized_gradients;
  policy.overlap = config.zero.overlap_comm;
  if (config.gradients.prescale) policy.pre_scale = static_cast<float>(1.0 / config.gradients.predivide_factor);
  // Shards, and whole gradients that add up over micro batches, are fp32 unless configured; a whole gradient that is
  // only stored keeps the type from autograd.
  const bool only_stored = !sharding.shard_gradients && config.batch.accumulation_steps == 1;
  const DType adding =
      config.gradients.accumulation_dtype.value_or(config.fp32_masters ? DType::kFloat32 : state.compute_dtype());
  const auto frame_dtype = [&](DType made_as) { return config.gradients.communication_dtype.value_or(made_as); };
  policy.accumulation_dtype =
      only_stored ? config.gradients.accumulation_dtype.value_or(state.compute_dtype()) : adding;
  policy.frame_dtype = frame_dtype(sharding.shard_gradients ? state.compute_dtype() : policy.accumulation_dtype);
  if (policy.accumulation_dtype != adding) policy.adding = reduce::ReduceTypes{adding, frame_dtype(adding)};
  policy.keep = policy.sharded && state.communicator().size() == 1 && formula::keeps_gradients(config);
  policy.fp32_sums = !config.gradients.accumulation_dtype;
  policy.fp32_sent = !config.gradients.communication_dtype;
  policy.offloaded = state.offloaded();
  policy.host = optimizer_host(config, device);
  policy.squares = config.gradients.norm || checks_overflow(config);
  policy.squares_before_copy = policy.squares && !device.is_cpu();
  if (!formula::gradients_on_disk(config)) return policy;
  policy.disk = make_gradient_disk(*state.layout(), config, rank, element_bytes(policy.accumulation_dtype), ledger);
  return policy;
}

}  // namespace zeropage::engine
