#include "zeropage/engine/background_save.h"

#include <fmt/format.h>

#include <cstring>
#include <utility>

#include "zeropage/base/blocking.h"
#include "zeropage/base/log.h"

namespace zeropage::engine {

BackgroundSave::BackgroundSave(checkpoint::FileSystem& files, std::shared_ptr<comm::Communicator> communicator,
                               std::shared_ptr<Ledger> ledger)
    : files_(files), communicator_(std::move(communicator)), ledger_(std::move(ledger)) {}

BackgroundSave::~BackgroundSave() {
  try {
    wait();
  } catch (const std::exception& error) {
    log_warn(fmt::format("a checkpoint was lost: {}", error.what()));
  }
}

void BackgroundSave::copy(std::vector<checkpoint::LocalTensor>& tensors) {
  const auto bytes_of = [](const checkpoint::LocalTensor& tensor) {
    return tensor.numel * checkpoint::dtype_bytes(tensor.info.dtype, tensor.info.name);
  };
  std::int64_t total_bytes = 0;
  for (const auto& tensor : tensors) total_bytes += bytes_of(tensor);
  if (!copy_ || copy_->bytes() < total_bytes) {
    copy_.reset();
    copy_ = std::make_unique<memory::DeviceBuffer>(total_bytes, memory::MemoryPlace(c10::kCPU, Tier::kHost), ledger_,
                                                   MemoryKind::kBuffers);
  }
  std::byte* next = copy_->data();
  for (auto& tensor : tensors) {
    const std::int64_t bytes = bytes_of(tensor);
    if (bytes > 0) tensor.read(0, next, bytes);
    tensor.read = [from = next](std::int64_t begin, std::byte* out, std::int64_t count) {
      std::memcpy(out, from + begin, static_cast<std::size_t>(count));
    };
    next += bytes;
  }
}

void BackgroundSave::start(checkpoint::SaveRequest request) {
  wait();
  copy(request.tensors);
  thread_ = std::thread([this, request = std::move(request)]() mutable {
    try {
      checkpoint::save(files_, communicator_->job(), std::move(request));
    } catch (...) {
      error_ = std::current_exception();
      failed_ = true;
    }
  });
}

void BackgroundSave::wait() {
  if (!thread_.joinable()) return;
  {
    const auto blocking = enter_blocking();
    thread_.join();
  }
  failed_ = false;
  if (error_) std::rethrow_exception(std::exchange(error_, nullptr));
}

}  // namespace zeropage::engine
