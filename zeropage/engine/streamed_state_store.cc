#include "zeropage/engine/streamed_state_store.h"

#include <c10/core/Event.h>
#include <c10/core/StreamGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <fmt/format.h>

#include <algorithm>
#include <deque>
#include <iterator>
#include <utility>

#include "zeropage/base/error.h"
#include "zeropage/engine/device_update.h"
#include "zeropage/formula/model_state.h"
#include "zeropage/memory/device_buffer.h"
#include "zeropage/paging/device_wait.h"
#include "zeropage/paging/polled_copy.h"
#include "zeropage/paging/stream_order.h"

namespace zeropage::engine {
namespace {

c10::Stream new_stream(c10::Device device) {
  return c10::impl::VirtualGuardImpl(device.type()).getStreamFromGlobalPool(device);
}

std::int64_t size_of(const StateArrays& arrays) { return static_cast<std::int64_t>(arrays.memory.size()); }

class StreamedStateStore final : public OptimizerStateStore {
 public:
  StreamedStateStore(std::unique_ptr<OptimizerStateStore> host, const StateShape& shape, c10::Device device,
                     std::shared_ptr<comm::Communicator> communicator, std::shared_ptr<Ledger> ledger)
      : host_(std::move(host)),
        device_(device),
        communicator_(std::move(communicator)),
        ledger_(std::move(ledger)),
        streamed_(shape.offloaded),
        to_device_(new_stream(device)),
        to_host_(new_stream(device)),
        pass_done_(device.type()) {
    for (std::size_t page = 0; page < streamed_.size(); ++page) {
      if (streamed_[page]) fit_buffers(shape.bytes(static_cast<int>(page)));
    }
    make_buffers();
  }

  c10::Device device(int page) const override { return is_streamed(page) ? device_ : host_->device(page); }
  bool is_in_place(int page) const override { return !is_streamed(page) && host_->is_in_place(page); }

  std::vector<int> begin_pass(std::vector<int> pages) override {
    pages = host_->begin_pass(std::move(pages));
    std::ranges::copy_if(pages, std::back_inserter(waiting_), [&](int page) { return is_streamed(page); });
    in_pass_ = true;
    if (host_is_behind_) pass_done_.block(to_device_);
    start_copies();
    return pages;
  }

  StateArrays acquire(int page) override {
    if (is_streamed(page) && in_pass_) {
      start_copies();
      const auto& buffer = buffer_of(page);
      buffer.filled.block(memory::current_stream(device_));
      return host_->acquire(page).moved_to(buffer.storage->data(), device_);
    }
    if (is_streamed(page)) wait_for_last_pass();
    return host_->acquire(page);
  }

  void release(int page, bool changed) override {
    if (is_streamed(page) && in_pass_) empty(buffer_of(page), changed);
    host_->release(page, changed);
  }

  void end_pass() override {
    leave_pass();
    host_->end_pass();
  }

  void commit() override { host_->commit(); }

  void abandon() override {
    leave_pass();
    host_->abandon();
  }

  io::MoverStats traffic() const override { return host_->traffic(); }
  void observe(const std::shared_ptr<Timeline>& timeline) override { host_->observe(timeline); }

  void add(int page, const PageShape& shape) override {
    wait_for_last_pass();
    host_->add(page, shape);
    const auto index = static_cast<std::size_t>(page);
    streamed_.resize(std::max(streamed_.size(), index + 1));
    streamed_[index] = shape.offloaded;
    if (!shape.offloaded || shape.numel == 0) return;
    const std::int64_t bytes = size_of(host_->acquire(page));
    host_->release(page, /*changed=*/false);
    if (fit_buffers(bytes)) make_buffers();
  }

  void unload() override {
    wait_for_last_pass();
    buffers_.clear();
    host_->unload();
  }

  void reload() override {
    host_->reload();
    make_buffers();
  }

 private:
  static constexpr int kNoPage = -1;

  struct Buffer {
    std::unique_ptr<memory::DeviceBuffer> storage;
    c10::Event filled;
    c10::Event emptied;
    int page = kNoPage;
  };

  bool is_streamed(int page) const { return streamed_[static_cast<std::size_t>(page)]; }

  /// Whether buffers have to grow for a page of `bytes` bytes. A page without state, for example with SGD, also uses a
  /// buffer.
  bool fit_buffers(std::int64_t bytes) {
    constexpr std::int64_t kSmallestBytes = 64;
    const std::int64_t before = std::exchange(buffer_bytes_, std::max({buffer_bytes_, bytes, kSmallestBytes}));
    return buffer_bytes_ > before;
  }

  void make_buffers() {
    buffers_.clear();
    for (int i = 0; i < formula::kStreamBuffers && buffer_bytes_ > 0; ++i) {
      auto storage = std::make_unique<memory::DeviceBuffer>(buffer_bytes_, device_, ledger_, MemoryKind::kBuffers);
      buffers_.push_back({std::move(storage), c10::Event(device_.type()), c10::Event(device_.type())});
      buffers_.back().emptied.record(memory::current_stream(device_));  // after the zeros are written
    }
  }

  Buffer& buffer_of(int page) {
    const auto found = std::ranges::find(buffers_, page, &Buffer::page);
    if (found == buffers_.end()) {
      throw Error(fmt::format("optimizer state of page {} is used in a pass that did not announce it", page));
    }
    return *found;
  }

  /// Starts copies of waiting pages, one per empty buffer.
  void start_copies() {
    const c10::StreamGuard guard(to_device_);
    for (auto& buffer : buffers_) {
      if (buffer.page != kNoPage || waiting_.empty()) continue;
      buffer.page = waiting_.front();
      waiting_.pop_front();
      const StateArrays source = host_->acquire(buffer.page);
      buffer.emptied.block(to_device_);
      paging::start_polled_copy(buffer.storage->data(), device_, source.memory.data(), c10::kCPU, size_of(source),
                                *communicator_, "the copy of optimizer state to the device");
      buffer.filled.record(to_device_);
      host_->release(buffer.page, /*changed=*/false);
    }
  }

  void empty(Buffer& buffer, bool changed) {
    const int page = std::exchange(buffer.page, kNoPage);
    buffer.emptied.record(memory::current_stream(device_));
    buffer.emptied.block(to_host_);
    if (!changed) return;
    const c10::StreamGuard guard(to_host_);
    const StateArrays target = host_->acquire(page);
    paging::start_polled_copy(target.memory.data(), c10::kCPU, buffer.storage->data(), device_, size_of(target),
                              *communicator_, "the copy of optimizer state to the host");
    buffer.emptied.record(to_host_);
  }

  void leave_pass() {
    if (!std::exchange(in_pass_, false)) return;
    waiting_.clear();
    for (auto& buffer : buffers_) buffer.page = kNoPage;
    pass_done_.record(to_host_);
    host_is_behind_ = true;
  }

  void wait_for_last_pass() {
    if (!host_is_behind_) return;
    paging::wait_for(pass_done_, *communicator_, "the copy of optimizer state to the host");
    host_is_behind_ = false;
  }

  std::unique_ptr<OptimizerStateStore> host_;
  c10::Device device_;
  std::shared_ptr<comm::Communicator> communicator_;
  std::shared_ptr<Ledger> ledger_;
  std::vector<bool> streamed_;  // per page
  c10::Stream to_device_;
  c10::Stream to_host_;
  std::int64_t buffer_bytes_ = 0;
  std::vector<Buffer> buffers_;
  std::deque<int> waiting_;  // pages of this pass that have no buffer yet
  bool in_pass_ = false;
  c10::Event pass_done_;         // all copies of the last pass, in both directions
  bool host_is_behind_ = false;  // the host has not waited for these copies
};

}  // namespace

bool is_updated_on_device(const config::Config& config, c10::Device device) {
  const auto& offload = config.zero.offload;
  const auto place = config.zeropage.offloaded_update;
  if (device.is_cpu() || offload.optimizer != config::OffloadDevice::kCpu) return false;
  if (offload.parameters == config::OffloadDevice::kNvme) return false;  // read from the drive into host memory
  if (place != config::UpdatePlace::kAuto) return place == config::UpdatePlace::kDevice;
  return offload.pin_optimizer && optim::takes_one_pass(config.optimizer.kind) && has_kernels(device) &&
         config.zeropage.speculation_bytes.value_or(0) == 0;
}

std::unique_ptr<OptimizerStateStore> make_streamed_state_store(std::unique_ptr<OptimizerStateStore> host,
                                                               const StateShape& shape, c10::Device device,
                                                               std::shared_ptr<comm::Communicator> communicator,
                                                               std::shared_ptr<Ledger> ledger) {
  return std::make_unique<StreamedStateStore>(std::move(host), shape, device, std::move(communicator),
                                              std::move(ledger));
}

}  // namespace zeropage::engine
