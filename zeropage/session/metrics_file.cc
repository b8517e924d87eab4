#include "zeropage/session/metrics_file.h"

#include <unistd.h>

#include <chrono>
#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>
#include <utility>

#include "zeropage/base/checked.h"
#include "zeropage/formula/model_state.h"

namespace zeropage::session {
namespace {

using nlohmann::ordered_json;

constexpr std::int64_t kStepsBetweenPages = 100;

double time_s() {
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  return std::round(std::chrono::duration<double>(now).count() * 1e3) / 1e3;
}

/// {"parameters": [now, peak], ...}; with `used_only` without the kinds that were never used.
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

ordered_json or_null(std::optional<double> value) { return value ? ordered_json(*value) : ordered_json(); }

}  // namespace

std::int64_t process_bytes() {
  std::ifstream file("/proc/self/statm");
  std::int64_t whole = 0;
  std::int64_t resident = 0;
  file >> whole >> resident;
  return resident * ::sysconf(_SC_PAGE_SIZE);
}

MetricsFile::MetricsFile(const std::string& path, const engine::Engine& core, const config::Config& config,
                         int world_size, c10::Device device)
    : core_(core), file_(path, R"({"record":"run")"), has_loss_scale_(config.precision == config::Precision::kFp16) {
  ordered_json record = {{"record", "run"},
                         {"version", ZEROPAGE_VERSION},
                         {"time_s", time_s()},
                         {"world_size", world_size},
                         {"stage", config.zero.stage},
                         {"device", device.str()},
                         {"trainable_parameters", core_.trainable_numel()},
                         {"formula_bytes", formula_of(core_.formula_bytes())},
                         {"live_limit_bytes", nullptr},
                         {"config", ordered_json::parse(config.effective_json)}};
  if (config.zero.stage == 3) {
    const std::int64_t element = element_bytes(formula::compute_dtype(config.precision));
    record["live_limit_bytes"] = saturating_mul(config.zero.max_live_numel, element);
  }
  write(record.dump());
}

MetricsFile::~MetricsFile() {
  try {
    close();
  } catch (const std::exception&) {
    // All steps are in the file. Only the last counts of pages are missing.
  }
}

void MetricsFile::close() {
  if (std::exchange(closed_, true)) return;
  write_pages();
  file_.close();
}

void MetricsFile::write_step(std::optional<double> loss, double lr, const StepTimes& times) {
  const auto pager = core_.pager_stats();
  const auto& last = core_.last_step();
  const std::int64_t step = core_.global_steps();
  ordered_json seconds = {{"whole", times.seconds}};
  for (const auto& [name, value] : times.parts) seconds[name] = value;
  // dump() writes null for values that are not finite, because JSON has none.
  ordered_json record = {{"record", "step"},
                         {"step", step},
                         {"samples", core_.global_samples()},
                         {"time_s", time_s()},
                         {"loss", or_null(loss)},
                         {"lr", lr},
                         {"grad_norm", or_null(last.gradient_norm)},
                         {"loss_scale", has_loss_scale_ ? ordered_json(core_.loss_scale()) : ordered_json()},
                         {"applied", last.applied},
                         {"skipped_steps", core_.skipped_steps()},
                         {"overflow_parameter", last.overflow ? ordered_json(last.overflow_parameter) : ordered_json()},
                         {"seconds", std::move(seconds)},
                         {"bytes", held_bytes(*core_.ledger(), Tier::kDevice, false)},
                         {"host_bytes", held_bytes(*core_.ledger(), Tier::kHost, true)},
                         {"process_bytes", process_bytes()},
                         {"faults", pager.faults},
                         {"prefetches", pager.prefetches},
                         {"evictions", pager.evictions},
                         {"gathered_bytes", pager.gathered_bytes}};
  write(record.dump());
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

}  // namespace zeropage::session
