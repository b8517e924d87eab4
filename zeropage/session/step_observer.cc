#include "zeropage/session/step_observer.h"

#include <ATen/DeviceAccelerator.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <array>
#include <nlohmann/json.hpp>
#include <vector>

#include "zeropage/base/log.h"
#include "zeropage/report/memory_table.h"

namespace zeropage::session {
namespace {

constexpr std::int64_t kStepsPerPrint = 10;  // if steps_per_print is not given

/// The parts of a step: its three phases; faults, waits for gradients and the update within them; the times of
/// transfers.
constexpr std::array kParts = {SpanKind::kForward, SpanKind::kBackward, SpanKind::kStep,   SpanKind::kFault,
                               SpanKind::kWait,    SpanKind::kUpdate,   SpanKind::kGather, SpanKind::kReduce};

}  // namespace

StepObserver::StepObserver(const engine::Engine& core, const config::Config& config, int rank, int world_size,
                           c10::Device device)
    : core_(core),
      device_(device),
      has_loss_scale_(config.precision == config::Precision::kFp16),
      last_(mark()),
      printed_(last_),
      printed_step_(core.global_steps()) {
  const auto keys = nlohmann::json::parse(config.effective_json);
  const bool first = rank == 0;
  const bool times = keys.at("wall_clock_breakdown").get<bool>();
  prints_times_ = times && first;
  prints_memory_ = keys.at("memory_breakdown").get<bool>() && first;
  waits_for_device_ = times && !device.is_cpu();
  steps_per_print_ = config.steps_per_print.value_or(0) > 0 ? *config.steps_per_print : kStepsPerPrint;
  const auto& path = keys.at("zeropage").at("metrics_file");
  if (first && path.is_string()) file_.emplace(path.get<std::string>(), core_, config, world_size, device);
}

void StepObserver::end_phase(std::string_view phase) const {
  if (waits_for_device_)
    core_.wait_for_device(fmt::format("the device, at the end of {}", phase), /*every_stream=*/true);
  // After the phase "step" the step has already been counted.
  const std::int64_t step = core_.global_steps() + (phase == "step" ? 0 : 1);
  if (prints_memory_ && step % steps_per_print_ == 0)
    log_info(fmt::format("memory after {}: {}", phase, memory_line()));
}

std::string StepObserver::memory_line() const {
  std::vector<std::string> held{report::format_held_memory(*core_.ledger())};
  if (device_.is_cuda()) {
    const auto stats = at::accelerator::getDeviceStats(device_.index());
    const auto& allocated = stats.allocated_bytes[static_cast<std::size_t>(at::CachingAllocator::StatType::AGGREGATE)];
    held.push_back("device " + report::format_bytes(allocated.current));
    held.push_back("device peak " + report::format_bytes(allocated.peak));
  }
  held.push_back("process " + report::format_bytes(process_bytes()));
  return fmt::format("{}", fmt::join(held, ", "));
}

StepTimes StepObserver::end_step(std::optional<double> loss, double lr) {
  const Mark now = mark();
  const StepTimes times = between(last_, now);
  if (file_) file_->write_step(loss, lr, times);
  last_ = now;
  if (prints_times_ && core_.global_steps() % steps_per_print_ == 0) print_times(now);
  return times;
}

std::vector<std::pair<std::string, double>> StepObserver::monitored(std::optional<double> loss, double lr,
                                                                    const StepTimes& times) const {
  const std::string folder = "Train/Samples/";
  std::vector<std::pair<std::string, double>> values;
  if (loss) values.emplace_back(folder + "train_loss", *loss);
  values.emplace_back(folder + "lr", lr);
  if (const auto norm = core_.last_step().gradient_norm) values.emplace_back(folder + "grad_norm", *norm);
  if (has_loss_scale_) values.emplace_back(folder + "loss_scale", core_.loss_scale());
  for (const char* phase : {"forward", "backward", "step"}) {
    if (prints_times_) values.emplace_back(folder + "elapsed_time_ms_" + phase, 1000 * times.parts.at(phase));
  }
  return values;
}

void StepObserver::close() {
  if (file_) file_->close();
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

StepTimes StepObserver::between(const Mark& before, const Mark& now) {
  StepTimes times{{}, std::chrono::duration<double>(now.time - before.time).count()};
  for (const auto& [name, total] : now.totals) times.parts[name] = total - before.totals.at(name);
  return times;
}

void StepObserver::print_times(const Mark& now) {
  const auto [parts, seconds] = between(printed_, now);
  const std::int64_t steps = core_.global_steps() - printed_step_;
  const auto ms = [&, &parts = parts](const char* name) { return 1000 * parts.at(name) / static_cast<double>(steps); };
  const double whole = 1000 * seconds / static_cast<double>(steps);
  const double rest = whole - ms("forward") - ms("backward") - ms("step");
  log_info(
      fmt::format("step {}, mean of {}: {:.1f} ms = forward {:.1f} ms + backward {:.1f} ms + step {:.1f} ms + between "
                  "{:.1f} ms; of these waiting for pages {:.1f} ms, for gradients {:.1f} ms, update {:.1f} ms",
                  core_.global_steps(), steps, whole, ms("forward"), ms("backward"), ms("step"), rest, ms("fault"),
                  ms("wait"), ms("update")));
  printed_ = now;
  printed_step_ = core_.global_steps();
}

}  // namespace zeropage::session
