#include "zeropage/reduce/coded_reductions.h"

#include <exception>
#include <utility>

#include "zeropage/base/error.h"
#include "zeropage/comm/c10d/c10d_buffers.h"
#include "zeropage/comm/wrapped_communicator.h"
#include "zeropage/memory/block_codes.h"
#include "zeropage/paging/frame_pool.h"
#include "zeropage/paging/stream_order.h"

namespace zeropage::reduce {
namespace {

constexpr optim::BlockCode kCode = optim::BlockCode::kInt4;

/// A reduction that exchanges codes.
struct Reduction {
  optim::CodedParts parts;
  std::byte* whole = nullptr;  ///< of all owners; then all ranks' values of this owner
  void* out = nullptr;
  DType out_dtype = DType::kFloat32;
  bool accumulate = false;
  comm::OnReduced on_reduced;
  std::byte* sent = nullptr;
  std::byte* received = nullptr;
};

class ExchangedSum final : public comm::Work {
 public:
  ExchangedSum(comm::WorkPtr exchange, Reduction reduction, c10::Device device, paging::FramePool& buffers)
      : exchange_(std::move(exchange)), reduction_(std::move(reduction)), device_(device), buffers_(buffers) {}

  ~ExchangedSum() override {
    try {
      if (std::uncaught_exceptions() == 0) wait();
    } catch (const std::exception&) {
      // The communicator has failed; the next call on it raises the error again.
    }
    exchange_.reset();  // the buffers are no longer read or written
    give_back();
  }

  bool poll() override {
    if (!exchange_->poll()) return false;
    finish();
    return true;
  }

  void wait() override {
    exchange_->wait();
    finish();
  }

 private:
  void finish() {
    if (reduction_.received == nullptr) return;
    const auto& parts = reduction_.parts;
    memory::decode_blocks(parts, reduction_.received, reduction_.whole, device_);
    give_back();
    const auto bytes = parts.count * parts.numel * element_bytes(parts.dtype);
    comm::sum_received(comm::wrap(reduction_.whole, bytes, DType::kOther, device_), parts.count, reduction_.out,
                       parts.numel, parts.dtype, reduction_.out_dtype, reduction_.accumulate, reduction_.on_reduced);
  }

  void give_back() {
    if (reduction_.received == nullptr) return;
    buffers_.release(std::exchange(reduction_.sent, nullptr), paging::event_after_current_work(device_));
    buffers_.release(std::exchange(reduction_.received, nullptr), paging::event_after_current_work(device_));
  }

  comm::WorkPtr exchange_;
  Reduction reduction_;
  const c10::Device device_;
  paging::FramePool& buffers_;
};

class CodedReductions final : public comm::WrappedCommunicator {
 public:
  CodedReductions(std::shared_ptr<comm::Communicator> inner, c10::Device device, std::shared_ptr<Ledger> ledger)
      : WrappedCommunicator(std::move(inner)),
        device_(device),
        buffers_(paging::make_private_frame_pool(device, INT64_MAX, std::move(ledger), MemoryKind::kBuffers)) {}

  comm::WorkPtr reduce_scatter(const void* whole, void* out, std::int64_t shard_numel, DType in_dtype, DType out_dtype,
                               bool accumulate, comm::Tag tag, comm::OnReduced on_reduced) override {
    auto* const values = static_cast<std::byte*>(const_cast<void*>(whole));
    if (size() > 1 && shard_numel > 0 && optim::is_codable(in_dtype)) {
      if (sums_by_hosts()) {
        return inner_->reduce_scatter_in_codes(whole, out, shard_numel, in_dtype, out_dtype, accumulate, tag,
                                               std::move(on_reduced), codec_of(shard_numel));
      }
      if (!one_sided()) {
        return exchange(
            {{kCode, in_dtype, shard_numel, size()}, values, out, out_dtype, accumulate, std::move(on_reduced)}, tag);
      }
      const std::int64_t shard_bytes = shard_numel * element_bytes(in_dtype);
      for (int owner = 0; owner < size(); ++owner) {
        std::byte* const part = values + owner * shard_bytes;
        optim::round_to_blocks(kCode, in_dtype, part, part, shard_numel);
      }
    }
    return inner_->reduce_scatter(whole, out, shard_numel, in_dtype, out_dtype, accumulate, tag, std::move(on_reduced));
  }

  comm::WorkPtr all_gather(const void* shard, void* whole, std::int64_t shard_bytes, comm::Tag tag) override {
    return inner_->all_gather(shard, whole, shard_bytes, tag);
  }
  comm::WorkPtr all_to_all(const void* sent, void* received, const comm::PartBytes& part_bytes,
                           comm::Tag tag) override {
    return inner_->all_to_all(sent, received, part_bytes, tag);
  }
  comm::WorkPtr all_reduce(void* data, std::int64_t numel, DType dtype, comm::Tag tag,
                           comm::OnReduced on_reduced) override {
    return inner_->all_reduce(data, numel, dtype, tag, std::move(on_reduced));
  }
  comm::WorkPtr broadcast(void* data, std::int64_t bytes, int root, comm::Tag tag) override {
    return inner_->broadcast(data, bytes, root, tag);
  }
  void barrier(comm::Tag tag) override { inner_->barrier(tag); }

 protected:
  std::string gather_host_bytes(std::string_view mine, comm::Tag tag) override {
    return comm::all_gather_small(*inner_, mine, tag);
  }

 private:
  comm::SumCodec codec_of(std::int64_t numel) const {
    const auto parts = [numel](std::int64_t count) { return optim::CodedParts{kCode, DType::kFloat32, numel, count}; };
    return {parts(1).part_bytes(),
            [=, this](const std::byte* values, std::int64_t count, std::byte* codes) {
              memory::encode_blocks(parts(count), values, codes, device_);
            },
            [=, this](const std::byte* codes, std::int64_t count, std::byte* values) {
              memory::decode_blocks(parts(count), codes, values, device_);
            }};
  }

  comm::WorkPtr exchange(Reduction reduction, comm::Tag tag) {
    const auto& parts = reduction.parts;
    reduction.sent = buffers_->acquire(parts.total_bytes());
    reduction.received = buffers_->acquire(parts.total_bytes());
    memory::encode_blocks(parts, reduction.whole, reduction.sent, device_);
    auto exchange = inner_->all_to_all(reduction.sent, reduction.received, parts.part_bytes(), tag);
    return std::make_unique<ExchangedSum>(std::move(exchange), std::move(reduction), device_, *buffers_);
  }

  const c10::Device device_;
  const std::unique_ptr<paging::FramePool> buffers_;
};

}  // namespace

std::shared_ptr<comm::Communicator> code_reductions(std::shared_ptr<comm::Communicator> inner, c10::Device device,
                                                    std::shared_ptr<Ledger> ledger) {
  return std::make_shared<CodedReductions>(std::move(inner), device, std::move(ledger));
}

}  // namespace zeropage::reduce
