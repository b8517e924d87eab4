#include "zeropage/base/timeline.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <nlohmann/json.hpp>

#include "zeropage/base/log.h"

namespace zeropage {
namespace {

// Times in files start again from 0 after this period: viewers store microseconds as double, which then resolve 4 ns.
constexpr std::int64_t kNsPerRound = 366 * 86'400'000'000'000;

std::int64_t wall_ns() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::system_clock::now().time_since_epoch())
      .count();
}

/// True for transfers: several may be active at once, and they may begin and end within operators.
bool overlaps(SpanKind kind) {
  return kind == SpanKind::kGather || kind == SpanKind::kReduce || kind == SpanKind::kExchange ||
         kind == SpanKind::kDisk;
}

std::string quoted(const std::string& text) {
  return nlohmann::json(text).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

std::string microseconds(std::int64_t ns) {
  return fmt::format("{}{}.{:03}", ns < 0 ? "-" : "", std::abs(ns) / 1000, std::abs(ns) % 1000);
}

}  // namespace

const char* span_kind_name(SpanKind kind) {
  static constexpr const char* kNames[kSpanKinds] = {"forward", "backward", "step", "operator", "fault", "gather",
                                                     "reduce",  "exchange", "wait", "update",   "disk"};
  return kNames[static_cast<int>(kind)];
}

Timeline::Timeline(TimelineOptions options) : options_(std::move(options)) {
  to_wall_ns_ = wall_ns() % kNsPerRound - now_ns();
}

Timeline::~Timeline() {
  if (!written_ && !kept_.empty()) write();
}

std::int64_t Timeline::now_ns() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

bool Timeline::recording() const {
  return !options_.file.empty() && step_ >= options_.first_step && step_ - options_.first_step < options_.steps;
}

void Timeline::add(SpanKind kind, std::string_view name, int page, std::int64_t begin_ns) {
  const std::int64_t end_ns = now_ns();
  const std::lock_guard lock(mutex_);
  auto& total = totals_[static_cast<int>(kind)];
  ++total.count;
  total.ns += end_ns - begin_ns;
  if (recording()) keep({kind, name_index(name), page, static_cast<std::int32_t>(gettid()), begin_ns, end_ns, -1});
}

void Timeline::add(const Transfer& transfer) {
  {
    const std::lock_guard lock(mutex_);
    const std::int64_t ns = transfer.end_ns - transfer.begin_ns;
    auto& kind_total = totals_[static_cast<int>(transfer.kind)];
    ++kind_total.count;
    kind_total.ns += ns;
    auto& total = transfers_[{std::string(transfer.operation), transfer.bytes}];
    ++total.whole.count;
    total.whole.ns += ns;
    total.waited_ns += transfer.waited_ns;
    if (recording()) {
      const std::string name = transfer.what.empty() ? std::string(transfer.operation)
                                                     : fmt::format("{}: {}", transfer.operation, transfer.what);
      keep({transfer.kind, name_index(name), -1, static_cast<std::int32_t>(gettid()), transfer.begin_ns,
            transfer.end_ns, transfer.bytes});
    }
  }
  if (on_transfer_) on_transfer_(transfer);
}

void Timeline::add_disk(std::string_view name, std::int64_t bytes, std::int64_t begin_ns) {
  const std::int64_t end_ns = now_ns();
  const std::lock_guard lock(mutex_);
  auto& total = totals_[static_cast<int>(SpanKind::kDisk)];
  ++total.count;
  total.ns += end_ns - begin_ns;
  if (!recording()) return;
  keep({SpanKind::kDisk, name_index(name), -1, static_cast<std::int32_t>(gettid()), begin_ns, end_ns, bytes});
}

void Timeline::keep(const Kept& span) {
  if (kept_.size() < options_.max_spans) {
    kept_.push_back(span);
  } else {
    ++dropped_;
  }
}

std::uint32_t Timeline::name_index(std::string_view name) {
  const auto found = name_indices_.find(name);
  if (found != name_indices_.end()) return found->second;
  names_.emplace_back(name);
  return name_indices_[names_.back()] = static_cast<std::uint32_t>(names_.size() - 1);
}

void Timeline::end_step() {
  const std::lock_guard lock(mutex_);
  const bool was_recording = recording();
  ++step_;
  if (was_recording && !recording()) write();
}

std::array<SpanTotal, kSpanKinds> Timeline::totals() const {
  const std::lock_guard lock(mutex_);
  return totals_;
}

std::map<TransferSize, TransferTotal> Timeline::transfers() const {
  const std::lock_guard lock(mutex_);
  return transfers_;
}

std::string Timeline::span_line(std::size_t index, const std::vector<std::string>& quoted_names) const {
  const Kept& span = kept_[index];
  std::string arguments;
  if (span.page >= 0 && span.page < static_cast<int>(page_labels_.size())) {
    arguments = "\"page\":" + quoted(page_labels_[span.page]);
  } else if (span.bytes >= 0) {
    arguments = fmt::format("\"bytes\":{}", span.bytes);
  }
  const std::string head = fmt::format(R"({{"name":{},"cat":"{}","pid":{},"tid":{})", quoted_names[span.name],
                                       span_kind_name(span.kind), options_.rank, span.thread);
  const std::string begin = microseconds(span.begin_ns + to_wall_ns_);
  if (!overlaps(span.kind)) {
    return fmt::format(",\n{},\"ph\":\"X\",\"ts\":{},\"dur\":{},\"args\":{{{}}}}}", head, begin,
                       microseconds(span.end_ns - span.begin_ns), arguments);
  }
  const std::string id = fmt::format("{}.{}", options_.rank, index);
  return fmt::format(
      ",\n{0},\"ph\":\"b\",\"id\":\"{1}\",\"ts\":{2},\"args\":{{{3}}}}},\n{0},\"ph\":\"e\",\"id\":\"{1}\",\"ts\":{4}}}",
      head, id, begin, arguments, microseconds(span.end_ns + to_wall_ns_));
}

void Timeline::print(std::FILE* file) const {
  const auto metadata = [&](const char* key, const char* value_name, const std::string& value) {
    return fmt::format(R"({{"name":"{}","ph":"M","pid":{},"tid":0,"args":{{"{}":{}}}}})", key, options_.rank,
                       value_name, quoted(value));
  };
  fmt::print(file, "[{}", metadata("process_name", "name", fmt::format("rank {}", options_.rank)));
  if (dropped_ > 0) {
    fmt::print(file, ",\n{}", metadata("process_labels", "labels", fmt::format("{} spans did not fit", dropped_)));
  }
  std::vector<std::string> quoted_names;
  for (const auto& name : names_) quoted_names.push_back(quoted(name));
  for (std::size_t i = 0; i < kept_.size(); ++i) fmt::print(file, "{}", span_line(i, quoted_names));
  fmt::print(file, "]\n");
}

/// A failure to write the trace does not end the training.
void Timeline::write() {
  written_ = true;
  const std::string unfinished = options_.file + ".unfinished";
  std::FILE* file = std::fopen(unfinished.c_str(), "w");
  bool whole = file != nullptr;
  if (whole) {
    print(file);
    whole = std::ferror(file) == 0;
    whole = std::fclose(file) == 0 && whole && std::rename(unfinished.c_str(), options_.file.c_str()) == 0;
  }
  if (!whole) {
    log_warn(fmt::format("{}: expected to write the trace there, got: {}; give another path", options_.file,
                         std::strerror(errno)));
  }
  kept_ = {};
}

std::string format_transfers(const std::map<TransferSize, TransferTotal>& transfers) {
  if (transfers.empty()) return "";
  std::vector<std::pair<TransferSize, TransferTotal>> rows(transfers.begin(), transfers.end());
  std::ranges::stable_sort(rows, std::greater<>(), [](const auto& row) { return row.second.waited_ns; });
  std::string out = fmt::format("{:<16} {:>14} {:>9} {:>16} {:>12} {:>12}\n", "operation", "bytes", "count",
                                "total bytes", "mean ms", "waited s");
  for (const auto& [size, total] : rows) {
    const auto count = static_cast<double>(total.whole.count);
    out += fmt::format("{:<16} {:>14} {:>9} {:>16} {:>12.3f} {:>12.3f}\n", size.first, size.second, total.whole.count,
                       size.second * total.whole.count, static_cast<double>(total.whole.ns) / count / 1e6,
                       static_cast<double>(total.waited_ns) / 1e9);
  }
  return out;
}

}  // namespace zeropage
