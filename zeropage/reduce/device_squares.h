/// \file
/// Squares of gradients on a device, summed there and fetched once per step:
///
///   1. add(page, pieces): these will be squared, on the current stream, after its earlier work. Launches wait until
///      there is enough work to fill a device.
///   2. forget(page): discards the pieces added for a page, because its gradient changes.
///   3. sums(page): the first call after an `add` starts the waiting work and all copies to the host, and waits for
///      them once.
///
/// With our own kernels (optim/device_kernels.h) the sums have the bits of optim::SquareSum; with torch's operators, if
/// there are none, squares and sums are also in double, in torch's order.
#pragma once

#include "zeropage/memory/torch_config.h"

#include <cstdint>
#include <optional>
#include <vector>

#include <ATen/core/Tensor.h>
#include <c10/core/Event.h>

#include "zeropage/comm/communicator.h"
#include "zeropage/optim/device_kernels.h"

namespace zeropage::reduce {

class DeviceSquares {
 public:
  /// `communicator`: see paging/device_wait.h.
  DeviceSquares(c10::Device device, comm::Communicator& communicator, std::size_t pages);

  /// Replaces the pieces added for the page. The pieces must not change until `start`, or `sums`. Cost: one read,
  /// later.
  void add(int page, std::vector<optim::SquaredPiece> pieces);

  /// Starts the waiting work: after it the pieces may change, in the order of the stream that was current when they
  /// were added.
  void start();

  /// Call when there are more pages.
  void grow(std::size_t pages) { pages_.resize(pages); }

  void forget(int page);
  void forget_all();
  bool has(int page) const { return !pages_[static_cast<std::size_t>(page)].pieces.empty(); }

  /// One sum for each added piece of a page. Errors: as comm::poll_until.
  std::vector<double> sums(int page);

 private:
  static constexpr int kWaits = -1;

  /// The sums of pieces that were started together: several for each piece.
  struct Batch {
    at::Tensor partial;  ///< [n], fp64
    std::optional<c10::Event> done;
    at::Tensor host;  ///< the same, once fetched
  };
  struct Page {
    std::vector<optim::SquaredPiece> pieces;
    int batch = kWaits;
    std::int64_t first = 0;  ///< index in the batch
  };

  std::int64_t partial_count(const optim::SquaredPiece& piece) const;
  void sum_by_operators(const std::vector<optim::SquaredPiece>& pieces, const at::Tensor& partial) const;
  void sum_by_kernels(const std::vector<optim::SquaredPiece>& pieces, const at::Tensor& partial) const;
  void fetch();

  c10::Device device_;
  comm::Communicator& communicator_;
  decltype(optim::DeviceKernels::square) kernel_ = nullptr;
  std::vector<Page> pages_;
  std::vector<Batch> batches_;
  std::vector<int> waiting_;  // pages
  std::int64_t waiting_numel_ = 0;
  std::optional<c10::Stream> stream_;  // of the waiting work; absent on the CPU
};

}  // namespace zeropage::reduce
