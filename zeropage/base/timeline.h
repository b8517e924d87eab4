/// \file
/// Records where one rank spends its time: spans with a kind, a name and a page, on a clock that all ranks share.
///
///   1. A span is added when it has ended (`Span`, or `add` for spans that overlap). Every span adds to the total of
///      its kind. A transfer also adds to the total of its operation and size.
///   2. During the steps that are traced, single spans are kept, too, up to a limit.
///   3. `end_step` counts steps. After the last traced step it writes the file, completely or not at all. If the run
///      ends earlier, the destructor writes the spans so far.
///
/// The file is an array of Chrome trace events (chrome://tracing, ui.perfetto.dev); the files of several ranks may be
/// joined to one array. Callers hold a null pointer when nothing is recorded, so that a run without recording only pays
/// for a branch.
#pragma once

#include <array>
#include <cstdint>
#include <cstdio>
#include <functional>
#include <map>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

namespace zeropage {

enum class SpanKind {
  kForward,   ///< from the call of the module to the call of backward
  kBackward,  ///< the call of backward
  kStep,      ///< the call of step
  kOperator,  ///< an operator that uses pages, including its waits for them
  kFault,     ///< the part of it in which a page was made resident
  kGather,    ///< a page's values are copied from the peers
  kReduce,    ///< gradients are summed over the ranks
  kExchange,  ///< any other collective
  kWait,      ///< the program waits for gradients
  kUpdate,    ///< the optimizer, and the copy or gather of the new values
  kDisk,      ///< a page is read from or written to a drive
};
inline constexpr int kSpanKinds = 11;

/// "forward", "backward", ...
const char* span_kind_name(SpanKind kind);

struct TimelineOptions {
  std::string file;  ///< empty: totals only
  int rank = 0;
  std::int64_t first_step = 1;  ///< counted from 1
  std::int64_t steps = 1;
  std::size_t max_spans =
      1'000'000;  ///< at about 40 bytes each; spans beyond it are only counted, and the file contains their number
};

/// A transfer between ranks.
struct Transfer {
  SpanKind kind = SpanKind::kExchange;
  std::string_view operation;  ///< "all_gather", ...
  std::string_view what;       ///< what it transferred; may be empty
  std::int64_t bytes = 0;
  std::int64_t begin_ns = 0;
  std::int64_t end_ns = 0;
  std::int64_t waited_ns = 0;  ///< the part of this time in which the program waited for it
};

struct SpanTotal {
  std::int64_t count = 0;
  std::int64_t ns = 0;
};

struct TransferTotal {
  SpanTotal whole;
  std::int64_t waited_ns = 0;
};

/// Operation and bytes of one transfer.
using TransferSize = std::pair<std::string, std::int64_t>;

/// Thread-safe.
class Timeline {
 public:
  explicit Timeline(TimelineOptions options);
  ~Timeline();
  Timeline(const Timeline&) = delete;
  Timeline& operator=(const Timeline&) = delete;

  /// Nanoseconds of a monotonic clock.
  static std::int64_t now_ns();

  /// The names of the pages in the file, by index.
  void set_page_labels(std::vector<std::string> labels) { page_labels_ = std::move(labels); }

  /// Called for every transfer, from the thread that found that it had ended.
  void on_transfer(std::function<void(const Transfer&)> callback) { on_transfer_ = std::move(callback); }

  /// Something that took from `begin_ns` until now. page: an index, or -1.
  void add(SpanKind kind, std::string_view name, int page, std::int64_t begin_ns);
  void add(const Transfer& transfer);

  /// A transfer of `bytes` between a drive and memory from `begin_ns` to now. `name`: "read of ...".
  void add_disk(std::string_view name, std::int64_t bytes, std::int64_t begin_ns);

  /// Counts an optimizer step that has ended. Writes the file after the last step of the trace; warns when that fails.
  void end_step();

  std::array<SpanTotal, kSpanKinds> totals() const;
  std::map<TransferSize, TransferTotal> transfers() const;

 private:
  struct Kept {
    SpanKind kind;
    std::uint32_t name;
    std::int32_t page;
    std::int32_t thread;
    std::int64_t begin_ns;
    std::int64_t end_ns;
    std::int64_t bytes;
  };

  bool recording() const;
  void keep(const Kept& span);
  std::uint32_t name_index(std::string_view name);
  std::string span_line(std::size_t index, const std::vector<std::string>& quoted_names) const;
  void print(std::FILE* file) const;
  void write();

  TimelineOptions options_;
  std::int64_t to_wall_ns_;  ///< added to the clock, gives the date and time of day, which are the same on all hosts
  std::vector<std::string> page_labels_;
  std::function<void(const Transfer&)> on_transfer_;
  mutable std::mutex mutex_;
  std::int64_t step_ = 1;  ///< the current step
  std::array<SpanTotal, kSpanKinds> totals_{};
  std::map<TransferSize, TransferTotal> transfers_;
  std::vector<Kept> kept_;
  std::int64_t dropped_ = 0;
  std::vector<std::string> names_;
  std::map<std::string, std::uint32_t, std::less<>> name_indices_;
  bool written_ = false;
};

/// A span from its constructor to its destructor. Costs one branch when `timeline` is null. `name` is read at the end.
class Span {
 public:
  Span(Timeline* timeline, SpanKind kind, std::string_view name, int page = -1)
      : timeline_(timeline), kind_(kind), name_(name), page_(page), begin_ns_(timeline ? Timeline::now_ns() : 0) {}
  ~Span() {
    if (timeline_) timeline_->add(kind_, name_, page_, begin_ns_);
  }
  Span(const Span&) = delete;
  Span& operator=(const Span&) = delete;

 private:
  Timeline* timeline_;
  SpanKind kind_;
  std::string_view name_;
  int page_;
  std::int64_t begin_ns_;
};

/// The transfers as an aligned table, largest waits first; empty text when there were none.
std::string format_transfers(const std::map<TransferSize, TransferTotal>& transfers);

}  // namespace zeropage
