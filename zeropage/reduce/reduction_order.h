/// \file
/// The order in which pages are reduced in a backward. It is the same on all ranks, so that their collectives match:
///
///   1. The first order is the reverse of the layout's: autograd reaches the last layers first.
///   2. The first backward that reduces records the order in which its pages become complete. At its end all ranks
///      adopt the order of rank 0 (`settle`).
///   3. A page that had no gradient on any rank in kBackwardsWithoutGradient backwards in a row is left out of the
///      order until it gets one.
///
/// Every rank makes the same calls of `note_backward`, `add` and `settle`, between the same collectives.
#pragma once

#include <cstddef>
#include <optional>
#include <vector>

#include "zeropage/comm/communicator.h"

namespace zeropage::reduce {

class ReductionOrder {
 public:
  /// Large enough that the pages of two alternating losses stay in the order.
  static constexpr int kBackwardsWithoutGradient = 4;

  /// `trained`: the pages that are reduced, in the order of the layout.
  explicit ReductionOrder(std::vector<int> trained);

  /// All pages that are reduced, also those that are currently left out.
  const std::vector<int>& pages() const { return pages_; }

  /// Adds a page that is trained from now on, at the end of the order.
  void add(int page);

  /// The next page that this backward must reduce; empty at the end of the order.
  std::optional<int> next();

  /// Moves on; call when the page of `next` is being reduced.
  void advance() { ++next_; }

  /// The order begins again with the next backward.
  void restart() { next_ = 0; }

  /// In a backward that reduces: call when this rank has all gradients of the page from its graph. Only the first call
  /// for a page counts.
  void note_complete(int page);

  /// Records whether some rank had gradients of the page in the backward that ends now.
  void note_backward(int page, bool has_gradient);

  /// Collective, once: all ranks adopt the order in which rank 0's pages became complete; the other pages follow.
  /// Errors: those of Work::wait.
  void settle(comm::Communicator& communicator);
  bool is_settled() const { return settled_; }

 private:
  int& backwards_without_gradient(int page);

  std::vector<int> pages_;
  std::vector<int> completed_;  // until the order is settled
  bool settled_ = false;
  std::size_t next_ = 0;                         // index into pages_
  std::vector<int> backwards_without_gradient_;  // per page, in a row
};

}  // namespace zeropage::reduce
