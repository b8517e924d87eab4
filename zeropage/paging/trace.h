/// \file
/// Predicts page uses from the last pass. A pass runs from one optimizer step to the next; the trace is the sequence of
/// pages its operators touched (repeated touches of the same page count once). During the next pass it predicts the
/// next use of every page, for prefetch and Belady's eviction (evict the page that is needed last; L. A. Belady, 1966).
#pragma once

#include <cstdint>
#include <vector>

namespace zeropage::paging {

class Trace {
 public:
  static constexpr std::int64_t kNever = INT64_MAX;

  explicit Trace(int pages) : uses_(pages) {}

  /// Records that `page` is touched, and follows the prediction: finds the page at or after the current position, else
  /// anywhere. Cost: constant while the prediction holds, otherwise logarithmic.
  void note(int page);

  /// Ends the pass: its record becomes the prediction for the next. An empty pass changes nothing.
  void end_pass();

  /// Index of the next predicted use of `page`, kNever when none is left in this pass. Compare with position().
  std::int64_t next_use(int page) const;

  /// The predicted sequence; predicted()[position()] is expected next.
  const std::vector<int>& predicted() const { return predicted_; }
  std::int64_t position() const { return position_; }

  /// True while every touch of this pass was the predicted one. Ranks that share a trace (equal hash()) and are on
  /// course touch the same pages in the same order.
  bool as_predicted() const { return as_predicted_ && !predicted_.empty(); }

  /// Hash of the predicted sequence; 0 when there is none.
  std::uint64_t hash() const { return hash_; }

 private:
  std::vector<int> recorded_;
  std::vector<int> predicted_;
  std::vector<std::vector<std::int64_t>> uses_;  // per page: ascending indices into predicted_
  std::int64_t position_ = 0;
  bool as_predicted_ = true;
  std::uint64_t hash_ = 0;
};

}  // namespace zeropage::paging
