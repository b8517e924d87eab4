#include "zeropage/planner/planned_optimizer.h"

#include <fmt/format.h>

#include <algorithm>
#include <string_view>

#include "zeropage/base/checked.h"
#include "zeropage/base/error.h"
#include "zeropage/base/json_text.h"
#include "zeropage/base/letter_case.h"
#include "zeropage/config/optimizers.h"

namespace zeropage::planner {
namespace {

constexpr const char* kStateOfPlan = "optimizer state of the plan";
constexpr std::int64_t kElementBytesMax = 1 << 16;

}  // namespace

PlannedOptimizer planned_optimizer(const std::string& name, std::int64_t element_bytes) {
  if (element_bytes < 0 || element_bytes > kElementBytesMax) {
    throw ConfigError(
        fmt::format("optimizer bytes: expected a number from 0 to {}, got {}", kElementBytesMax, element_bytes));
  }
  for (const config::OptimizerEntry& entry : config::optimizer_entries()) {
    if (!equal_ignoring_case(entry.type, name)) continue;
    const auto states = std::ranges::count_if(entry.states, [](const char* state) { return state != nullptr; });
    return {entry.type, static_cast<int>(states)};
  }
  if (equal_ignoring_case("Muon", name)) return {"Muon", 0, true};
  if (equal_ignoring_case("whole", name)) return {"whole", 0, true, element_bytes};
  throw ConfigError(
      fmt::format("optimizer: expected one of {}, Muon, or whole for an object that sees whole parameters, got {}",
                  config::optimizer_types(), json::quote(name)));
}

std::int64_t updated_numel(std::int64_t numel, int stage, int world_size) {
  return stage == 0 ? numel : ceil_div(numel, world_size);
}

std::int64_t kept_bytes(const PlannedOptimizer& optimizer, const Model& model, int stage, int world_size) {
  if (!optimizer.by_torch) return 0;
  const auto bytes = [&](std::int64_t numel, std::int64_t each) {
    return checked_mul(updated_numel(numel, stage, world_size), each, kStateOfPlan);
  };
  if (!optimizer.is_muon()) return bytes(model.trainable_numel, optimizer.element_bytes);
  return checked_add(bytes(model.muon_numel, 4), bytes(model.trainable_numel - model.muon_numel, 8), kStateOfPlan);
}

std::int64_t engine_element_bytes(const PlannedOptimizer& optimizer, config::Precision precision) {
  return 4 * optimizer.states + (precision == config::Precision::kFp32 ? 0 : 4);
}

double muon_operations(double hidden) { return (4 * 2 + 14 * 2 * 0.5) * hidden; }

}  // namespace zeropage::planner
