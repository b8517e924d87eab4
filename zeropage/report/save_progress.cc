#include "zeropage/report/save_progress.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <memory>
#include <utility>

#include "zeropage/report/progress.h"

namespace zeropage::report {
namespace {

constexpr double kPatienceS = 1.0;
constexpr double kRewriteS = 0.1;

}  // namespace

SaveProgress::SaveProgress(std::string what, std::function<double()> now_s, std::function<void(std::string_view)> write)
    : what_(std::move(what)),
      now_s_(std::move(now_s)),
      write_(std::move(write)),
      begun_s_(now_s_()),
      shown_s_(begun_s_) {}

void SaveProgress::update(std::int64_t done_bytes, std::int64_t total_bytes) {
  const double now_s = now_s_();
  if (done_bytes >= total_bytes) {
    if (columns_ > 0) write_(fmt::format("\r{:{}}\r", "", columns_));
    columns_ = 0;
    return;
  }
  const double interval_s = columns_ == 0 ? kPatienceS : kRewriteS;
  if (done_bytes <= 0 || now_s - shown_s_ < interval_s) return;
  shown_s_ = now_s;
  const double share = static_cast<double>(done_bytes) / static_cast<double>(total_bytes);
  const auto line = fmt::format("saving {}: {:.0f}% of {}B, {} left", what_, 100.0 * share,
                                format_quantity(static_cast<double>(total_bytes)),
                                format_duration((now_s - begun_s_) * (1.0 - share) / share));
  const std::size_t before = std::exchange(columns_, line.size());
  write_(fmt::format("\r{:{}}", line, std::max(before, columns_)));
}

std::function<void(std::int64_t, std::int64_t)> SaveProgress::on_stderr(std::string what) {
  if (isatty(STDERR_FILENO) != 1) return nullptr;
  const auto now_s = [] {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
  };
  const auto write = [](std::string_view text) {
    std::fwrite(text.data(), 1, text.size(), stderr);
    std::fflush(stderr);
  };
  auto line = std::make_shared<SaveProgress>(std::move(what), now_s, write);
  return [line](std::int64_t done_bytes, std::int64_t total_bytes) { line->update(done_bytes, total_bytes); };
}

}  // namespace zeropage::report
