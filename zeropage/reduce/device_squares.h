/// \file
/// Squares of gradients that are on a device, summed there and fetched once a step:
///
///   1. add(page, pieces): these will be squared, on the stream that is current, behind what it was given so far.
///      Launches wait until there is enough for one that fills a device.
///   2. forget(page): what was added of a page is void, because its gradient changes.
///   3. sums(page): the first one after an `add` starts what still waits, starts all copies to the host, and waits for
///      them once.
///
/// By kernels of our own (optim/device_kernels.h) the sums have the bits of optim::SquareSum; by torch's operators,
/// where there are none, squares and sums are in double, too, in an order of theirs.
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

  /// Replaces what was added of the page. The pieces must stay as they are until `start`, or `sums`. Cost: one read,
  /// later.
  void add(int page, std::vector<optim::SquaredPiece> pieces);

  /// Starts what waits: after it the pieces may change, in the order of the stream that was current when they were
  /// added.
  void start();

  /// There are more pages.
  void grow(std::size_t pages) { pages_.resize(pages); }

  void forget(int page);
  void forget_all();
  bool has(int page) const { return !pages_[static_cast<std::size_t>(page)].pieces.empty(); }

  /// One for each piece of a page that was added. Errors: as comm::poll_until.
  std::vector<double> sums(int page);

 private:
  static constexpr int kWaits = -1;

  /// The sums of what was started together: several for each piece.
  struct Batch {
    at::Tensor partial;  ///< [n], fp64
    std::optional<c10::Event> done;
    at::Tensor host;  ///< the same, once fetched
  };
  struct Page {
    std::vector<optim::SquaredPiece> pieces;
    int batch = kWaits;
    std::int64_t first = 0;  ///< in the batch
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
  std::optional<c10::Stream> stream_;  // of what waits; absent on the CPU
};

}  // namespace zeropage::reduce
