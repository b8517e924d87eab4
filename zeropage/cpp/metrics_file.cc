#include "zeropage/cpp/metrics_file.h"

#include <chrono>
#include <cmath>
#include <nlohmann/json.hpp>

#include "zeropage/cpp/step_observer.h"

namespace zeropage::cpp {
namespace {

using nlohmann::ordered_json;

constexpr std::int64_t kStepsBetweenPages = 100;

double time_s() {
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  return std::round(std::chrono::duration<double>(now).count() * 1e3) / 1e3;
}

/// {"parameters": [now, peak], ...}; where `used_only`, without the kinds that never held anything.
ordered_json held_bytes(const Ledger& ledger, Tier tier, bool used_only) {
  auto out = ordered_json::object();
  for (int i = 0; i < kMemoryKinds; ++i) {
    const auto kind = static_cast<MemoryKind>(i);
    const std::int64_t peak = ledger.peak_bytes(kind, tier);
    if (peak > 0 || !used_only) out[std::string(memory_kind_name(kind))] = {ledger.current_bytes(kind, tier), peak};
  }
  return out;
}

ordered_json formula_of(const formula::PlacedBytes& bytes) {
  return {{"parameters", bytes.device.parameters + bytes.offloaded.parameters},
          {"gradients", bytes.device.gradients + bytes.offloaded.gradients},
          {"optimizer", bytes.device.optimizer + bytes.offloaded.optimizer}};
}

}  // namespace

MetricsFile::MetricsFile(const std::string& path, const engine::Engine& core)
    : core_(core), file_(path, R"({"record":"run")") {}

MetricsFile::~MetricsFile() {
  try {
    write_pages();
  } catch (const std::exception&) {
    // The steps are in the file; only the last counts of pages are not.
  }
}

void MetricsFile::write_run(const Engine& engine) {
  const auto config = ordered_json::parse(engine.config());
  ordered_json record = {{"record", "run"},
                         {"version", ZEROPAGE_VERSION},
                         {"time_s", time_s()},
                         {"world_size", engine.world_size()},
                         {"stage", engine.zero_optimization_stage()},
                         {"device", engine.device().str()},
                         {"trainable_parameters", core_.trainable_numel()},
                         {"formula_bytes", formula_of(core_.formula_bytes())},
                         {"live_limit_bytes", nullptr},
                         {"config", config}};
  if (engine.zero_optimization_stage() == 3) {
    const std::int64_t element_bytes = engine.fp16_enabled() || engine.bfloat16_enabled() ? 2 : 4;
    const auto live_numel = config.at("zero_optimization").at("stage3_max_live_parameters").get<std::int64_t>();
    record["live_limit_bytes"] = live_numel * element_bytes;
  }
  write(record.dump());
}

void MetricsFile::write_step(const Engine& engine, const Parts& parts, double seconds) {
  const auto pager = core_.pager_stats();
  ordered_json all_seconds = {{"whole", seconds}};
  for (const auto& [name, value] : parts) all_seconds[name] = value;
  // dump() writes null for what is not finite, of which JSON knows nothing.
  ordered_json record = {
      {"record", "step"},
      {"step", engine.global_steps()},
      {"samples", engine.global_samples()},
      {"time_s", time_s()},
      {"loss", engine.mean_loss()},
      {"lr", engine.get_lr().front()},
      {"grad_norm", engine.get_global_grad_norm().value_or(NAN)},
      {"loss_scale", engine.fp16_enabled() ? ordered_json(engine.loss_scale()) : ordered_json()},
      {"applied", engine.was_step_applied()},
      {"skipped_steps", engine.skipped_steps()},
      {"overflow_parameter",
       core_.last_step().overflow ? ordered_json(core_.last_step().overflow_parameter) : ordered_json()},
      {"seconds", std::move(all_seconds)},
      {"bytes", held_bytes(*core_.ledger(), Tier::kDevice, false)},
      {"host_bytes", held_bytes(*core_.ledger(), Tier::kHost, true)},
      {"process_bytes", process_bytes()},
      {"faults", pager.faults},
      {"prefetches", pager.prefetches},
      {"evictions", pager.evictions},
      {"gathered_bytes", pager.gathered_bytes}};
  write(record.dump());
  const std::int64_t step = engine.global_steps();
  if (step == 1 || step == 10 || step % kStepsBetweenPages == 0) write_pages();
}

void MetricsFile::write_pages() {
  auto pages = ordered_json::array();
  for (const auto& page : core_.page_counts()) {
    pages.push_back(ordered_json::array({page.label, page.bytes, page.faults, page.evictions}));
  }
  write(ordered_json{{"record", "pages"}, {"step", core_.global_steps()}, {"pages", std::move(pages)}}.dump());
}

void MetricsFile::write(const std::string& line) { file_.write(line + "\n"); }

}  // namespace zeropage::cpp
