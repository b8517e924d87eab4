#include "zeropage/report/progress.h"

#include <fmt/format.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <utility>

namespace zeropage::report {
namespace {

constexpr double kAveragingTimeS = 10.0;

int terminal_columns(int descriptor) {
  winsize size{};
  return ioctl(descriptor, TIOCGWINSZ, &size) == 0 ? size.ws_col : 0;
}

}  // namespace

std::string format_quantity(double value) {
  constexpr std::string_view kSuffixes[] = {"", "k", "M", "G", "T"};
  std::size_t suffix = 0;
  // From 999.5 three digits would round to 1000.
  while (std::abs(value) >= 999.5 && suffix + 1 < std::size(kSuffixes)) {
    value /= 1000.0;
    ++suffix;
  }
  const double magnitude = std::abs(value);
  const int decimals = magnitude >= 99.95 ? 0 : magnitude >= 9.995 ? 1 : 2;
  return fmt::format("{:.{}f}{}", value, decimals, kSuffixes[suffix]);
}

std::string format_duration(double seconds) {
  constexpr double kLongest = 1e9;
  if (!(seconds >= 0.0) || seconds > kLongest) return "?";
  const auto whole = static_cast<std::int64_t>(std::llround(seconds));
  if (whole < 60) return fmt::format("{}s", whole);
  if (whole < 3600) return fmt::format("{}m{:02}s", whole / 60, whole % 60);
  if (whole < 86400) return fmt::format("{}h{:02}m", whole / 3600, whole % 3600 / 60);
  return fmt::format("{}d{:02}h", whole / 86400, whole % 86400 / 3600);
}

Progress::Progress(ProgressOptions options, std::function<double()> now_s, std::function<void(std::string_view)> write)
    : options_(std::move(options)), now_s_(std::move(now_s)), write_(std::move(write)) {}

Progress Progress::on_stderr(std::int64_t total_steps, std::string unit) {
  ProgressOptions options;
  options.total_steps = total_steps;
  options.unit = std::move(unit);
  options.terminal = isatty(STDERR_FILENO) == 1;
  options.columns = options.terminal ? terminal_columns(STDERR_FILENO) : 0;
  const auto now_s = [] {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
  };
  const auto write = [](std::string_view text) {
    std::fwrite(text.data(), 1, text.size(), stderr);
    std::fflush(stderr);
  };
  return Progress(std::move(options), now_s, write);
}

void Progress::update(const ProgressSample& sample) {
  const double now_s = now_s_();
  if (last_) note_rates(sample, now_s);
  last_ = sample;
  last_time_s_ = now_s;
  const double interval_s = options_.terminal ? options_.rewrite_interval_s : options_.plain_interval_s;
  if (shown_step_ < 0 || now_s - shown_time_s_ >= interval_s) show();
}

void Progress::finish() {
  if (last_ && last_->step != shown_step_) show();
  if (rewritten_columns_ > 0) write_("\n");
  rewritten_columns_ = 0;
}

/// Updates exponential averages over time. The first step only starts the clock, because it includes work that happens
/// once.
void Progress::note_rates(const ProgressSample& sample, double now_s) {
  const double elapsed_s = now_s - last_time_s_;
  const std::int64_t steps = sample.step - last_->step;
  if (elapsed_s <= 0.0 || steps <= 0) return;
  const double step_s = elapsed_s / static_cast<double>(steps);
  const double units_per_s = sample.units * static_cast<double>(steps) / elapsed_s;
  const double weight = seconds_per_step_ ? 1.0 - std::exp(-elapsed_s / kAveragingTimeS) : 1.0;
  const double old_step_s = seconds_per_step_.value_or(0.0);
  seconds_per_step_ = old_step_s + weight * (step_s - old_step_s);
  units_per_s_ += weight * (units_per_s - units_per_s_);
  const auto average = [&](double& kept, double change) { kept += weight * (change / elapsed_s - kept); };
  average(disk_bytes_per_s_, static_cast<double>(sample.disk_bytes - last_->disk_bytes));
  average(disk_wait_share_, sample.disk_wait_s - last_->disk_wait_s);
}

void Progress::show() {
  std::string text = line();
  shown_step_ = last_->step;
  shown_time_s_ = last_time_s_;
  if (!options_.terminal) return write_(text + "\n");
  // The last column stays free: some terminals wrap as soon as it is filled.
  if (options_.columns > 1) text.resize(std::min(text.size(), static_cast<std::size_t>(options_.columns) - 1));
  const std::size_t columns = text.size();
  if (columns < rewritten_columns_) text.append(rewritten_columns_ - columns, ' ');
  rewritten_columns_ = columns;
  write_("\r" + text);
}

std::string Progress::line() const {
  std::string text = fmt::format("step {}", last_->step);
  if (options_.total_steps > 0) text += fmt::format("/{}", options_.total_steps);
  text += fmt::format("  loss {:.4f}  lr {:.2e}", last_->loss, last_->learning_rate);
  if (seconds_per_step_) text += fmt::format("  {} {}/s", format_quantity(units_per_s_), options_.unit);
  if (last_->loss_scale) text += fmt::format("  scale {:g}", *last_->loss_scale);
  if (seconds_per_step_ && last_->disk_bytes > 0) {
    text += fmt::format("  disk {:.2f} GB/s, limit: {}", disk_bytes_per_s_ / 1e9,
                        disk_wait_share_ > 0.5 ? "drive" : "compute");
  }
  if (seconds_per_step_ && options_.total_steps > 0) {
    const auto steps_left = static_cast<double>(std::max<std::int64_t>(0, options_.total_steps - last_->step));
    text += fmt::format("  left {}", format_duration(steps_left * *seconds_per_step_));
  }
  return text;
}

}  // namespace zeropage::report
