#include "zeropage/engine/scheduled_groups.h"

namespace zeropage::engine {

std::vector<double> rates_of(const std::vector<config::OptimizerParams>& groups) {
  std::vector<double> rates;
  for (const auto& group : groups) rates.push_back(group.lr);
  return rates;
}

void take_scheduled(const optim::LrSchedule& schedule, config::OptimizerKind kind,
                    std::vector<config::OptimizerParams>& groups) {
  const auto rates = schedule.lrs();
  const auto momenta = schedule.momenta();
  for (std::size_t i = 0; i < groups.size(); ++i) {
    groups[i].lr = rates[i];
    if (!momenta) continue;
    // Each optimizer has one of the two; torch's optimizers, run by the caller, may have either.
    if (kind != config::OptimizerKind::kSgd) groups[i].beta1 = (*momenta)[i];
    if (kind == config::OptimizerKind::kSgd || kind == config::OptimizerKind::kClient)
      groups[i].momentum = (*momenta)[i];
  }
}

}  // namespace zeropage::engine
