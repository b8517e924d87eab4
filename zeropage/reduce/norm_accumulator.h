/// \file
/// Sums of squares of gradients, for the global norm: one optim::SquareSum for each segment of this rank's shards. On
/// the host the writer of a sum adds the squares of values that it has just written, which are still in the cache. On a
/// device the squares of many pages are summed together (device_squares.h).
///
/// The writer of a shard calls `watch` first, and calls the result for every piece that it has written. If that did not
/// happen for all pieces, `sums` reads the shard again.
#pragma once

#include "zeropage/memory/torch_config.h"

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "zeropage/comm/communicator.h"
#include "zeropage/layout/layout.h"
#include "zeropage/optim/norm.h"
#include "zeropage/reduce/device_squares.h"

namespace zeropage::reduce {

class NormAccumulator {
 public:
  /// `enabled`: false if squares are not needed; then none are summed, and `sums` is empty. `communicator` must outlive
  /// this object.
  NormAccumulator(std::shared_ptr<const layout::Layout> layout, comm::Communicator& communicator, c10::Device device,
                  bool enabled);

  /// Call when the layout has more pages.
  void grow();

  /// Adds a page whose squares will be summed.
  void add_page(int page);

  /// The segments of this rank's shard of the page.
  const std::vector<layout::Segment>& segments(int page) const { return pages_[page].segments; }

  /// Discards the squares of the page, because its sum changes.
  void forget(int page);
  void forget_all_on_device() { device_.forget_all(); }

  /// Adds elements [begin, begin + numel) of this rank's shard. `data`: [numel, dtype], in host memory.
  void add(int page, const std::byte* data, DType dtype, std::int64_t begin, std::int64_t numel);

  /// For the writer of this rank's whole shard at `data` [shard_numel, dtype], in host memory: to be called with each
  /// written piece (begin, numel). Empty when not enabled. Discards the earlier squares.
  comm::OnReduced watch(int page, const std::byte* data, DType dtype);

  /// The same for one parameter's gradient [numel, dtype], if one rank has the whole page and the gradient is not
  /// written again. `complete` is called when all parameters of the page were written.
  comm::OnReduced watch_parameter(int parameter, const std::byte* data, DType dtype);

  /// Call when all elements of the shard were reported.
  void complete(int page);

  /// The segments of a shard [shard_numel, dtype] that begins at `data`.
  std::vector<optim::SquaredPiece> pieces(int page, const void* data, DType dtype) const;

  /// Squares these pieces on the device, one for each segment, and discards earlier squares. With `at_once` they may
  /// change afterwards, in the order of the current stream; otherwise not before `sums`.
  void add_on_device(int page, std::vector<optim::SquaredPiece> pieces, bool at_once);
  bool is_on_device(int page) const { return device_.has(page); }

  /// One sum of squares for each segment. `read_again` returns the pieces of the whole shard; it is called if not all
  /// elements were reported. Errors: as comm::poll_until.
  std::vector<double> sums(int page, const std::function<std::vector<optim::SquaredPiece>()>& read_again);

 private:
  struct Page {
    std::vector<layout::Segment> segments;
    std::vector<optim::SquareSum> squares;  ///< one for each segment
    std::int64_t squared_numel = 0;         ///< elements of the shard in these squares
  };

  std::int64_t shard_begin(int page) const;
  std::size_t segment_at(int page, std::int64_t offset) const;

  std::shared_ptr<const layout::Layout> layout_;
  int rank_;
  bool enabled_;
  std::vector<Page> pages_;
  DeviceSquares device_;
};

}  // namespace zeropage::reduce
