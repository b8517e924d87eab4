#include "zeropage/paging/frame_pool.h"

#include <fmt/format.h>

#include <algorithm>
#include <exception>
#include <unordered_map>

#include "zeropage/base/checked.h"
#include "zeropage/base/error.h"
#include "zeropage/base/log.h"
#include "zeropage/memory/device_buffer.h"
#include "zeropage/paging/stream_order.h"

namespace zeropage::paging {
namespace {

class PrivateFramePool final : public FramePool {
 public:
  PrivateFramePool(c10::Device device, std::int64_t limit_bytes, std::shared_ptr<Ledger> ledger, MemoryKind kind)
      : device_(device), limit_bytes_(limit_bytes), ledger_(std::move(ledger)), kind_(kind) {}

  ~PrivateFramePool() override {
    try {
      trim();
    } catch (const std::exception& error) {
      log_warn(fmt::format("frames are freed, and the streams of their device do not answer: {}", error.what()));
    }
  }

  std::byte* acquire(std::int64_t bytes) override {
    const auto reused = find_unused(bytes);
    if (reused != unused_.end()) {
      Frame frame = std::move(reused->second);
      unused_.erase(reused);
      if (frame.used) frame.used->block(memory::current_stream(device_));
      frame.used.reset();
      return lend(std::move(frame));
    }
    while (!unused_.empty() && held_bytes_ + bytes > limit_bytes_) drop_one();
    held_bytes_ += bytes;
    return lend({std::make_unique<memory::DeviceBuffer>(bytes, device_, ledger_, kind_), {}});
  }

  void release(std::byte* data, std::optional<c10::Event> used) override {
    auto found = in_use_.find(data);
    Frame frame = std::move(found->second);
    in_use_.erase(found);
    frame.used = std::move(used);
    const auto bytes = frame.buffer->bytes();
    unused_.emplace(bytes, std::move(frame));
  }

  void trim() override {
    while (!unused_.empty()) drop_one();
  }

 private:
  static constexpr std::size_t kFramesInUse =
      4;  // how many frames still in use may be waited for before a new one is made

  struct Frame {
    std::unique_ptr<memory::DeviceBuffer> buffer;
    std::optional<c10::Event> used;
  };
  using Unused = std::multimap<std::int64_t, Frame>;

  /// Finds the frame that was returned first among those that are not much larger than requested; larger ones would
  /// waste part of the limit.
  Unused::iterator find_unused(std::int64_t bytes) {
    const auto first = unused_.lower_bound(bytes);
    const auto end = unused_.upper_bound(bytes + bytes / 4);
    for (auto at = first; at != end; ++at) {
      if (!at->second.used || at->second.used->query()) return at;
    }
    const bool may_wait = unused_.size() >= kFramesInUse || held_bytes_ + bytes > limit_bytes_;
    return first != end && may_wait ? first : unused_.end();
  }

  std::byte* lend(Frame frame) {
    std::byte* data = frame.buffer->data();
    in_use_.emplace(data, std::move(frame));
    return data;
  }

  void drop_one() {
    auto dropped = unused_.begin();
    held_bytes_ -= dropped->first;
    auto& frame = dropped->second;
    if (frame.used) frame.used->block(memory::current_stream(device_));
    unused_.erase(dropped);
  }

  c10::Device device_;
  std::int64_t limit_bytes_;
  std::shared_ptr<Ledger> ledger_;
  MemoryKind kind_;
  std::int64_t held_bytes_ = 0;
  Unused unused_;  // by size, then in the order of their return
  std::unordered_map<std::byte*, Frame> in_use_;
};

class SharedFramePool final : public FramePool {
 public:
  SharedFramePool(comm::Communicator& communicator, std::int64_t capacity_bytes, std::shared_ptr<Ledger> ledger,
                  MemoryKind kind)
      : memory_(communicator.allocate(capacity_bytes, "gradient frames")), ledger_(std::move(ledger)), kind_(kind) {
    holes_.emplace(0, capacity_bytes);
  }

  ~SharedFramePool() override { ledger_->add(kind_, -touched_bytes_); }

  std::byte* acquire(std::int64_t bytes) override {
    const std::int64_t rounded = round_to_page(bytes);
    auto hole = std::find_if(holes_.begin(), holes_.end(), [&](const auto& h) { return h.second >= rounded; });
    if (hole == holes_.end()) {
      throw Error(fmt::format("no room for a gradient frame of {} bytes; this is a bug in zeropage", bytes));
    }
    const auto [offset, length] = *hole;
    holes_.erase(hole);
    if (length > rounded) holes_.emplace(offset + rounded, length - rounded);
    in_use_.emplace(offset, rounded);
    if (offset + rounded > touched_bytes_) {
      ledger_->add(kind_, offset + rounded - touched_bytes_);
      touched_bytes_ = offset + rounded;
    }
    return memory_->data() + offset;
  }

  void release(std::byte* frame, std::optional<c10::Event>) override {
    auto used = in_use_.find(frame - memory_->data());
    auto [offset, length] = *used;
    in_use_.erase(used);
    auto next = holes_.lower_bound(offset);
    if (next != holes_.end() && next->first == offset + length) {
      length += next->second;
      next = holes_.erase(next);
    }
    if (next != holes_.begin()) {
      auto previous = std::prev(next);
      if (previous->first + previous->second == offset) {
        previous->second += length;
        return;
      }
    }
    holes_.emplace(offset, length);
  }

  void trim() override {
    const std::int64_t used_end = in_use_.empty() ? 0 : in_use_.rbegin()->first + in_use_.rbegin()->second;
    if (used_end >= touched_bytes_) return;
    memory_->discard(used_end, touched_bytes_ - used_end);
    ledger_->add(kind_, used_end - touched_bytes_);
    touched_bytes_ = used_end;
  }

 private:
  static std::int64_t round_to_page(std::int64_t bytes) { return round_up(std::max<std::int64_t>(bytes, 1), 4096); }

  std::unique_ptr<comm::Memory> memory_;
  std::shared_ptr<Ledger> ledger_;
  MemoryKind kind_;
  std::int64_t touched_bytes_ = 0;               // high-water mark since the last trim: what the system really holds
  std::map<std::int64_t, std::int64_t> holes_;   // offset -> length
  std::map<std::int64_t, std::int64_t> in_use_;  // offset -> length
};

}  // namespace

std::unique_ptr<FramePool> make_private_frame_pool(c10::Device device, std::int64_t limit_bytes,
                                                   std::shared_ptr<Ledger> ledger, MemoryKind kind) {
  return std::make_unique<PrivateFramePool>(device, limit_bytes, std::move(ledger), kind);
}

std::unique_ptr<FramePool> make_shared_frame_pool(comm::Communicator& communicator, std::int64_t capacity_bytes,
                                                  std::shared_ptr<Ledger> ledger, MemoryKind kind) {
  return std::make_unique<SharedFramePool>(communicator, capacity_bytes, std::move(ledger), kind);
}

}  // namespace zeropage::paging
