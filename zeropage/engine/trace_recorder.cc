#include "zeropage/engine/trace_recorder.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <string>
#include <utility>

#include "zeropage/base/log.h"
#include "zeropage/comm/recording_communicator.h"

namespace zeropage::engine {
namespace {

/// folder/trace.json -> folder/trace.rank3.json
std::string file_of_rank(const std::string& path, int rank) {
  std::filesystem::path file(path);
  const std::string extension = file.extension().string();
  file.replace_filename(fmt::format("{}.rank{}{}", file.stem().string(), rank, extension));
  return file.string();
}

bool is_listed(const config::CommsLog& log, std::string_view operation) {
  return log.operations.empty() || std::ranges::find(log.operations, operation) != log.operations.end();
}

void print_transfer(const config::CommsLog& log, const Transfer& transfer) {
  if (!is_listed(log, transfer.operation)) return;
  const double ms = static_cast<double>(transfer.end_ns - transfer.begin_ns) / 1e6;
  std::string line = fmt::format("{}: {} bytes, {:.3f} ms", transfer.operation, transfer.bytes, ms);
  if (log.debug && !transfer.what.empty()) line += fmt::format(", {}", transfer.what);
  log_info(line);
}

}  // namespace

TraceRecorder::TraceRecorder(const config::Observation& wanted, int rank) : comms_(wanted.comms), rank_(rank) {
  TimelineOptions options;
  const char* environment = std::getenv("ZEROPAGE_TRACE");
  const std::string file = environment != nullptr ? environment : wanted.trace_file.value_or("");
  if (!wanted.times && !comms_.enabled && file.empty()) return;
  if (!file.empty()) options.file = file_of_rank(file, rank);
  options.rank = rank;
  options.first_step = wanted.trace_first_step;
  options.steps = wanted.trace_steps;
  timeline_ = std::make_shared<Timeline>(std::move(options));
  if (comms_.enabled && comms_.verbose && rank == 0) {
    timeline_->on_transfer([log = comms_](const Transfer& transfer) { print_transfer(log, transfer); });
  }
}

TraceRecorder::~TraceRecorder() {
  if (!comms_.enabled || rank_ != 0) return;
  auto transfers = timeline_->transfers();
  std::erase_if(transfers, [&](const auto& row) { return !is_listed(comms_, row.first.first); });
  log_info("collectives of rank 0\n" + format_transfers(transfers));
}

void TraceRecorder::begin_forward() {
  if (timeline_) forward_begin_ns_ = Timeline::now_ns();
}

void TraceRecorder::end_forward() {
  if (forward_begin_ns_ == 0) return;
  timeline_->add(SpanKind::kForward, "forward", -1, std::exchange(forward_begin_ns_, 0));
}

bool TraceRecorder::step(const std::function<bool()>& step) const {
  bool ended = false;
  {
    const Span span(timeline_.get(), SpanKind::kStep, "step");
    ended = step();
  }
  if (ended && timeline_) timeline_->end_step();
  return ended;
}

std::shared_ptr<comm::Communicator> TraceRecorder::observed(std::shared_ptr<comm::Communicator> communicator) const {
  return timeline_ ? comm::record_transfers(std::move(communicator), timeline_) : communicator;
}

}  // namespace zeropage::engine
