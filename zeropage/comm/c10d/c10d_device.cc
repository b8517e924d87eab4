#include "zeropage/comm/c10d/c10d_device.h"

#include <ATen/ops/empty.h>
#include <c10/core/Event.h>
#include <c10/core/StreamGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <algorithm>
#include <optional>
#include <utility>
#include <vector>

#include "zeropage/comm/c10d/c10d_buffers.h"

namespace zeropage::comm {
namespace {

c10::Stream current_stream_of(c10::Device device) {
  return c10::impl::VirtualGuardImpl(device.type()).getStream(device);
}

void order(const c10::Stream& later, const c10::Stream& earlier) {
  c10::Event event(earlier.device_type());
  event.record(earlier);
  event.block(later);
}

class DeviceSums final : public SumMemory {
 public:
  explicit DeviceSums(c10::Device device) : device_(device) {}

  std::shared_ptr<std::byte> allocate(std::int64_t bytes) const override {
    const auto options = at::TensorOptions().dtype(at::kByte).device(device_);
    at::Tensor memory = at::empty({std::max<std::int64_t>(bytes, 1)}, options);
    auto* const data = static_cast<std::byte*>(memory.data_ptr());
    return {data, [memory = std::move(memory)](std::byte*) {}};
  }

  void add(const std::byte* terms, std::int64_t count, std::byte* out, std::int64_t numel, DType in_dtype,
           DType out_dtype, bool accumulate, const OnReduced&, const std::byte* start) const override {
    const at::Tensor received = wrap(terms, count * numel * element_bytes(in_dtype), DType::kOther, device_);
    sum_received(received, count, out, numel, in_dtype, out_dtype, accumulate, {}, start);
  }

 private:
  const c10::Device device_;
};

class DeviceStream final : public OperationStream {
 public:
  DeviceStream(const c10::Stream& stream, const std::function<void(Work&)>& order_after)
      : stream_(stream), order_after_(order_after), over_(stream.device_type()) {
    order(stream_, current_stream_of(stream_.device()));
  }

  std::shared_ptr<void> enter() override { return std::make_shared<c10::StreamGuard>(stream_); }
  void order_after(Work& work) override { order_after_(work); }
  void end() override { over_.record(stream_); }
  bool is_over() const override { return over_.query(); }
  void order_current() override { over_.block(current_stream_of(stream_.device())); }

 private:
  const c10::Stream stream_;
  const std::function<void(Work&)> order_after_;
  c10::Event over_;
};

class C10dDevice final : public GroupDevice {
 public:
  C10dDevice(c10::Device device, bool orders_streams, std::function<void(Work&)> order_after)
      : device_(device),
        orders_streams_(orders_streams),
        order_after_(std::move(order_after)),
        sums_(std::make_shared<const DeviceSums>(device)) {
    const c10::impl::VirtualGuardImpl streams(device.type());
    for (int i = 0; i < kStreams; ++i) streams_.push_back(streams.getStreamFromGlobalPool(device));
  }

  bool holds(const void* buffer) const override { return device_of(buffer, device_) == device_; }
  bool orders_streams() const override { return orders_streams_; }
  std::shared_ptr<const SumMemory> sums() const override { return sums_; }
  std::shared_ptr<OperationStream> begin() override {
    return std::make_shared<DeviceStream>(streams_[next_++ % streams_.size()], order_after_);
  }

 private:
  /// Two: one collective is inside the group while the previous one is between groups.
  static constexpr int kStreams = 2;

  const c10::Device device_;
  const bool orders_streams_;
  const std::function<void(Work&)> order_after_;
  const std::shared_ptr<const SumMemory> sums_;
  std::vector<c10::Stream> streams_;
  std::size_t next_ = 0;
};

}  // namespace

std::shared_ptr<GroupDevice> make_c10d_device(c10::Device device, bool orders_streams,
                                              std::function<void(Work&)> order_after) {
  return std::make_shared<C10dDevice>(device, orders_streams, std::move(order_after));
}

}  // namespace zeropage::comm
