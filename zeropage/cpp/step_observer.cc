#include "zeropage/cpp/step_observer.h"

#include <ATen/DeviceAccelerator.h>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <unistd.h>

#include <array>
#include <fstream>
#include <nlohmann/json.hpp>
#include <vector>

#include "zeropage/base/log.h"
#include "zeropage/report/memory_table.h"

namespace zeropage::cpp {
namespace {

using nlohmann::json;

constexpr std::int64_t kStepsPerPrint = 10;  // where steps_per_print is not given

/// Of a step: its three phases; inside them faults, waits for gradients and the update; how long transfers were under way.
constexpr std::array kParts = {SpanKind::kForward, SpanKind::kBackward, SpanKind::kStep,   SpanKind::kFault,
                               SpanKind::kWait,    SpanKind::kUpdate,   SpanKind::kGather, SpanKind::kReduce};

double seconds_between(const std::chrono::steady_clock::time_point& a, const std::chrono::steady_clock::time_point& b) {
  return std::chrono::duration<double>(b - a).count();
}

/// What monitors are told of the last optimizer step, under DeepSpeed's names.
std::vector<Event> step_events(const Engine& engine, const Parts& phases) {
  const std::int64_t samples = engine.global_samples();
  std::vector<Event> events = {{"Train/Samples/train_loss", engine.mean_loss(), samples},
                               {"Train/Samples/lr", engine.get_lr().front(), samples},
                               {"Train/Samples/grad_norm", engine.get_global_grad_norm().value_or(0.0), samples}};
  if (engine.fp16_enabled()) events.push_back({"Train/Samples/loss_scale", engine.loss_scale(), samples});
  for (const auto& [name, seconds] : phases) {
    events.push_back({"Train/Samples/elapsed_time_ms_" + name, 1000 * seconds, samples});
  }
  return events;
}

}  // namespace

std::int64_t process_bytes() {
  std::ifstream file("/proc/self/statm");
  std::int64_t whole = 0;
  std::int64_t resident = 0;
  file >> whole >> resident;
  return resident * ::sysconf(_SC_PAGE_SIZE);
}

StepObserver::StepObserver(const Engine& engine, const engine::Engine& core)
    : core_(core), last_(mark()), printed_(last_) {
  const auto config = json::parse(engine.config());
  const bool times = config.at("wall_clock_breakdown").get<bool>();
  const bool first = engine.global_rank() == 0;
  prints_times_ = times && first;
  prints_memory_ = config.at("memory_breakdown").get<bool>() && first;
  waits_for_device_ = times && !engine.device().is_cpu();
  steps_per_print_ = engine.steps_per_print().value_or(0) > 0 ? *engine.steps_per_print() : kStepsPerPrint;
  printed_step_ = engine.global_steps();
  if (!first) return;
  const auto& path = config.at("zeropage").at("metrics_file");
  if (path.is_string()) file_.emplace(path.get<std::string>(), core).write_run(engine);
  const auto& csv = config.at("csv_monitor");
  if (csv.at("enabled").get<bool>()) {
    const std::string folder = csv.at("output_path").get<std::string>();
    monitor_ = Monitor((folder.empty() ? "" : folder + "/") + csv.at("job_name").get<std::string>());
  }
}

void StepObserver::end_step(const Engine& engine) {
  end_phase(engine, "step");
  if (!prints_times_ && !file_ && !monitor_.enabled()) return;
  const Mark now = mark();
  const Parts parts = since(last_, now);
  if (file_) file_->write_step(engine, parts, seconds_between(last_.time, now.time));
  last_ = now;
  if (monitor_.enabled()) {
    Parts phases;
    for (const char* name : {"forward", "backward", "step"}) {
      if (prints_times_) phases.emplace(name, parts.at(name));
    }
    monitor_.write_events(step_events(engine, phases));
  }
  if (prints_times_ && engine.global_steps() % steps_per_print_ == 0) print_times(engine, now);
}

StepObserver::Mark StepObserver::mark() const {
  Mark mark{{}, std::chrono::steady_clock::now()};
  const auto timeline = core_.timeline();
  const auto totals = timeline ? timeline->totals() : std::array<SpanTotal, kSpanKinds>{};
  for (const SpanKind kind : kParts) {
    mark.totals[span_kind_name(kind)] = static_cast<double>(totals[static_cast<std::size_t>(kind)].ns) / 1e9;
  }
  return mark;
}

Parts StepObserver::since(const Mark& before, const Mark& now) {
  Parts parts;
  for (const auto& [name, total] : now.totals) parts[name] = total - before.totals.at(name);
  return parts;
}

void StepObserver::end_phase(const Engine& engine, std::string_view phase) const {
  if (waits_for_device_) at::accelerator::synchronizeDevice(engine.device().index());
  // `step` has counted itself already.
  const std::int64_t step = engine.global_steps() + (phase == "step" ? 0 : 1);
  if (!prints_memory_ || step % steps_per_print_ != 0) return;
  std::vector<std::string> held;
  for (const Tier tier : {Tier::kDevice, Tier::kHost}) {
    for (int i = 0; i < kMemoryKinds; ++i) {
      const auto kind = static_cast<MemoryKind>(i);
      const std::int64_t bytes = core_.ledger()->current_bytes(kind, tier);
      if (tier == Tier::kHost && bytes == 0) continue;
      held.push_back(fmt::format("{}{} {}", memory_kind_name(kind), tier == Tier::kHost ? " offloaded" : "",
                                 report::format_bytes(bytes)));
    }
  }
  held.push_back("process " + report::format_bytes(process_bytes()));
  log_info(fmt::format("memory after {}: {}", phase, fmt::join(held, ", ")));
}

void StepObserver::print_times(const Engine& engine, const Mark& now) {
  const Parts parts = since(printed_, now);
  const double steps = static_cast<double>(engine.global_steps() - printed_step_);
  const double seconds = seconds_between(printed_.time, now.time);
  const auto ms = [&](const char* name) { return 1000 * parts.at(name) / steps; };
  const double between = 1000 * seconds / steps - ms("forward") - ms("backward") - ms("step");
  log_info(
      fmt::format("step {}, mean of {}: {:.1f} ms = forward {:.1f} ms + backward {:.1f} ms + step {:.1f} ms + between "
                  "{:.1f} ms; of these waiting for pages {:.1f} ms, for gradients {:.1f} ms, update {:.1f} ms",
                  engine.global_steps(), steps, 1000 * seconds / steps, ms("forward"), ms("backward"), ms("step"),
                  between, ms("fault"), ms("wait"), ms("update")));
  printed_ = now;
  printed_step_ = engine.global_steps();
}

}  // namespace zeropage::cpp
