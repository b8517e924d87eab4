#include "zeropage/plan/auto_stage.h"

#include <fmt/format.h>

namespace zeropage::plan {
namespace {

constexpr double kShareAsItIs = 1.0 / 3;
constexpr double kShareOfState = 1.0 / 2;

}  // namespace

AutoStage choose_stage(const ParameterCounts& counts, StateOptions options, std::int64_t free_bytes) {
  const auto gigabytes = [](double bytes) { return fmt::format("{:.3g} GB", bytes / 1e9); };
  const auto state = [&](int stage) {
    options.stage = stage;
    return static_cast<double>(model_state_bytes(counts, options).total());
  };
  const auto memory = static_cast<double>(free_bytes);
  const std::string of_memory = fmt::format("of {} free per rank", gigabytes(memory));
  if (options.world_size == 1) {
    return {0, fmt::format("there is one rank, so nothing can be sharded; the state takes {} {}", gigabytes(state(0)),
                           of_memory)};
  }
  if (state(0) <= kShareAsItIs * memory) {
    return {1, fmt::format(
                   "the whole state would take {} {}: it fits as it is, and stage 1 frees the optimizer's memory at "
                   "no cost",
                   gigabytes(state(0)), of_memory)};
  }
  if (state(2) <= kShareOfState * memory) {
    return {2, fmt::format("the state takes {} {} at stage 2, {} unsharded; its communication is that of plain data "
                           "parallelism",
                           gigabytes(state(2)), of_memory, gigabytes(state(0)))};
  }
  std::string reason =
      fmt::format("stage 2 would take {} {}, more than the half that leaves room for activations; stage 3 takes {}",
                  gigabytes(state(2)), of_memory, gigabytes(state(3)));
  if (state(3) > kShareOfState * memory) {
    reason += "; that may be too much, too: use more ranks, or look at `zeropage plan`";
  }
  return {3, reason};
}

}  // namespace zeropage::plan
