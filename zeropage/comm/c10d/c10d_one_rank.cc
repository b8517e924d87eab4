#include "zeropage/comm/c10d/c10d_one_rank.h"

#include <fmt/format.h>

#include <mutex>
#include <string>
#include <utility>

#include "zeropage/base/error.h"
#include "zeropage/comm/c10d/c10d_buffers.h"
#include "zeropage/comm/call.h"
#include "zeropage/comm/finished_work.h"
#include "zeropage/comm/reduce_kernels.h"

namespace zeropage::comm {
namespace {

void check_size(std::int64_t size, const char* what) {
  if (size < 0) throw UsageError(fmt::format("{}: a size of {}; sizes are at least 0", what, size));
}

class OneRankCommunicator final : public Communicator {
 public:
  OneRankCommunicator(c10::Device device, std::chrono::milliseconds timeout) : device_(device), timeout_(timeout) {}

  int rank() const override { return 0; }
  int size() const override { return 1; }
  bool owns_memory() const override { return false; }
  bool one_sided() const override { return false; }
  const std::byte* peer_address(int, const void*) const override {
    throw UsageError("a job of one rank has no peers whose memory can be read; ask one_sided() before peer_address()");
  }
  std::unique_ptr<Memory> allocate(std::int64_t bytes, std::string_view label) override {
    check_size(bytes, "allocate");
    return make_private_memory(bytes, device_, label);
  }

  WorkPtr all_gather(const void* shard, void* whole, std::int64_t shard_bytes, Tag) override {
    check_size(shard_bytes, "all_gather");
    return copy(shard, whole, shard_bytes);
  }

  WorkPtr all_to_all(const void* sent, void* received, const PartBytes& part_bytes, Tag) override {
    return copy(sent, received, sent_bytes(part_bytes, 0, 1));
  }

  WorkPtr reduce_scatter(const void* whole, void* out, std::int64_t shard_numel, DType in_dtype, DType out_dtype,
                         bool accumulate, Tag, OnReduced on_reduced) override {
    check_size(shard_numel, "reduce_scatter");
    check_reducible(in_dtype, out_dtype, accumulate, "reduce_scatter");
    if (shard_numel > 0) {
      const at::Tensor sent =
          wrap(whole, shard_numel * element_bytes(in_dtype), DType::kOther, device_of(whole, device_));
      take_own(sent, out, shard_numel, in_dtype, out_dtype, accumulate, on_reduced);
    }
    return finish();
  }

  WorkPtr all_reduce(void* data, std::int64_t numel, DType dtype, Tag, OnReduced on_reduced) override {
    check_size(numel, "all_reduce");
    check_reducible(dtype, dtype, false, "all_reduce");
    if (on_reduced && numel > 0 && device_of(data, device_).is_cpu()) on_reduced(0, numel);
    return finish();
  }

  WorkPtr broadcast(void*, std::int64_t bytes, int root, Tag) override {
    check_size(bytes, "broadcast");
    if (root != 0) throw UsageError(fmt::format("broadcast from rank {}: there is only rank 0", root));
    return finish();
  }

  void barrier(Tag) override { throw_if_aborted(); }

  void wait_until(const std::function<bool()>& ready, int, std::string_view what) override {
    poll_until(*this, ready, what);
  }

  void throw_if_aborted() override {
    const std::scoped_lock lock(mutex_);
    if (!reason_.empty()) throw PeerError(reason_);
  }

  void abort(std::string_view reason) override {
    const std::scoped_lock lock(mutex_);
    if (reason_.empty()) reason_ = fmt::format("this rank (0) aborted: {}", reason);
  }

  std::chrono::milliseconds timeout() const override { return timeout_; }
  std::int64_t bytes_moved() const override { return 0; }

 protected:
  std::string gather_host_bytes(std::string_view mine, Tag) override {
    throw_if_aborted();
    return std::string(mine);
  }

 private:
  WorkPtr copy(const void* from, void* to, std::int64_t bytes) {
    if (from != to && bytes > 0) {
      const c10::Device place = device_of(to, device_);
      wrap(to, bytes, DType::kOther, place).copy_(wrap(from, bytes, DType::kOther, place));
    }
    return finish();
  }

  WorkPtr finish() {
    throw_if_aborted();
    return std::make_unique<FinishedWork>();
  }

  const c10::Device device_;
  const std::chrono::milliseconds timeout_;
  std::mutex mutex_;
  std::string reason_;  ///< the reason of the abort; empty: not aborted
};

}  // namespace

std::unique_ptr<Communicator> make_one_rank_communicator(c10::Device device, std::chrono::milliseconds timeout) {
  return std::make_unique<OneRankCommunicator>(device, timeout);
}

}  // namespace zeropage::comm
