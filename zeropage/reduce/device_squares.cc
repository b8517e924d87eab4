#include "zeropage/reduce/device_squares.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/StreamGuard.h>

#include <algorithm>
#include <utility>

#include "zeropage/memory/device_buffer.h"
#include "zeropage/optim/norm.h"
#include "zeropage/paging/device_wait.h"

namespace zeropage::reduce {
namespace {

/// A thread of a kernel adds 4096 elements one after the other: many must run in parallel to read at the full speed of
/// memory.
constexpr std::int64_t kLaunchNumel = 1 << 27;

/// Elements of temporary doubles.
constexpr std::int64_t kOperatorNumel = 1 << 23;

}  // namespace

DeviceSquares::DeviceSquares(c10::Device device, comm::Communicator& communicator, std::size_t pages)
    : device_(device), communicator_(communicator), pages_(pages) {
  const auto* kernels = optim::device_kernels(static_cast<int>(device.type()));
  if (kernels != nullptr) kernel_ = kernels->square;
}

std::int64_t DeviceSquares::partial_count(const optim::SquaredPiece& piece) const {
  return kernel_ != nullptr ? optim::square_blocks(piece.numel) : 1;
}

void DeviceSquares::add(int page, std::vector<optim::SquaredPiece> pieces) {
  forget(page);
  if (pieces.empty()) return;
  if (!device_.is_cpu()) {
    const c10::Stream current = memory::current_stream(device_);
    if (stream_ != current) start();
    stream_ = current;
  }
  for (const auto& piece : pieces) waiting_numel_ += piece.numel;
  pages_[static_cast<std::size_t>(page)].pieces = std::move(pieces);
  waiting_.push_back(page);
  if (waiting_numel_ >= kLaunchNumel) start();
}

void DeviceSquares::start() {
  if (waiting_.empty()) return;
  c10::OptionalDeviceGuard device;
  c10::OptionalStreamGuard stream;
  if (stream_) {
    device.reset_device(device_);
    stream.reset_stream(*stream_);
  }
  std::vector<optim::SquaredPiece> pieces;
  std::int64_t count = 0;
  for (const int index : waiting_) {
    auto& page = pages_[static_cast<std::size_t>(index)];
    page.batch = static_cast<int>(batches_.size());
    page.first = count;
    for (const auto& piece : page.pieces) count += partial_count(piece);
    pieces.insert(pieces.end(), page.pieces.begin(), page.pieces.end());
  }
  waiting_.clear();
  waiting_numel_ = 0;
  Batch batch{at::zeros({count}, at::TensorOptions().dtype(at::kDouble).device(device_)), {}, {}};
  kernel_ != nullptr ? sum_by_kernels(pieces, batch.partial) : sum_by_operators(pieces, batch.partial);
  if (stream_) {
    batch.done.emplace(device_.type());
    batch.done->record(*stream_);
  }
  batches_.push_back(std::move(batch));
}

void DeviceSquares::sum_by_kernels(const std::vector<optim::SquaredPiece>& pieces, const at::Tensor& partial) const {
  const at::Tensor lanes = at::empty({partial.numel() * optim::SquareSum::kLanes}, partial.options());
  kernel_(pieces, lanes.mutable_data_ptr<double>(), partial.mutable_data_ptr<double>(), stream_->native_handle());
}

void DeviceSquares::sum_by_operators(const std::vector<optim::SquaredPiece>& pieces, const at::Tensor& partial) const {
  for (std::size_t i = 0; i < pieces.size(); ++i) {
    const auto values =
        memory::flat_view(const_cast<void*>(pieces[i].data), pieces[i].numel, scalar_type_of(pieces[i].dtype), device_);
    auto sum = partial.select(0, static_cast<std::int64_t>(i));
    for (const auto& part : values.split(kOperatorNumel)) {
      sum.add_(part.to(at::kDouble, /*non_blocking=*/false, /*copy=*/true).square_().sum());
    }
  }
}

void DeviceSquares::forget(int page) {
  auto& known = pages_[static_cast<std::size_t>(page)];
  if (known.batch == kWaits && !known.pieces.empty()) {
    for (const auto& piece : known.pieces) waiting_numel_ -= piece.numel;
    std::erase(waiting_, page);
  }
  known = Page();
}

void DeviceSquares::forget_all() {
  std::fill(pages_.begin(), pages_.end(), Page());
  batches_.clear();
  waiting_.clear();
  waiting_numel_ = 0;
}

void DeviceSquares::fetch() {
  start();
  std::optional<c10::Stream> current;
  if (!device_.is_cpu()) current = memory::current_stream(device_);
  for (auto& batch : batches_) {
    if (batch.host.defined()) continue;
    if (batch.done) batch.done->block(*current);
    const auto options = at::TensorOptions().dtype(at::kDouble).pinned_memory(current.has_value());
    batch.host = at::empty({batch.partial.numel()}, options);
    batch.host.copy_(batch.partial, /*non_blocking=*/true);
  }
  if (current) paging::wait_for_stream(device_, communicator_, "the squares of the gradients");
}

std::vector<double> DeviceSquares::sums(int page) {
  const auto& known = pages_[static_cast<std::size_t>(page)];
  if (known.batch == kWaits || !batches_[static_cast<std::size_t>(known.batch)].host.defined()) fetch();
  const double* next = batches_[static_cast<std::size_t>(known.batch)].host.const_data_ptr<double>() + known.first;
  std::vector<double> sums;
  for (const auto& piece : known.pieces) {
    double sum = 0.0;
    for (std::int64_t i = partial_count(piece); i > 0; --i) sum += *next++;
    sums.push_back(sum);
  }
  return sums;
}

}  // namespace zeropage::reduce
