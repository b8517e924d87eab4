#include "zeropage/comm/mpi/mpi_communicator.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <exception>
#include <string>
#include <utility>
#include <vector>

#include "zeropage/base/error.h"
#include "zeropage/comm/mpi/mpi_group.h"
#include "zeropage/comm/reduce_kernels.h"
#include "zeropage/comm/shm/mapped_region.h"

namespace zeropage::comm {
namespace {

class MpiWork final : public Work {
 public:
  MpiWork(MpiGroup& group, std::shared_ptr<MpiOperation> operation) : group_(group), operation_(std::move(operation)) {}
  ~MpiWork() override {
    try {
      if (std::uncaught_exceptions() > 0 && !group_.poll(*operation_)) {
        group_.abort("an error ended its " + describe_call(operation_->call));
      }
      group_.wait(*operation_);
    } catch (const std::exception&) {
      // The group has failed; the next call on it raises the error again.
    }
  }
  bool poll() override { return group_.poll(*operation_); }
  void wait() override { group_.wait(*operation_); }

 private:
  MpiGroup& group_;
  std::shared_ptr<MpiOperation> operation_;
};

class OwnMemory final : public Memory {
 public:
  OwnMemory(std::int64_t bytes, std::string_view label) : region_(-1, bytes, std::string(label).c_str()) {}
  std::byte* data() const override { return region_.data(); }
  std::int64_t bytes() const override { return region_.bytes(); }
  void discard(std::int64_t offset, std::int64_t length) override { region_.discard(offset, length); }

 private:
  MappedRegion region_;
};

class MpiCommunicator final : public Communicator {
 public:
  MpiCommunicator(std::shared_ptr<MpiRuntime> runtime, std::shared_ptr<MpiGroup> group)
      : runtime_(std::move(runtime)), group_(std::move(group)), rank_(group_->rank()), size_(group_->size()) {}
  ~MpiCommunicator() override { group_->close(); }

  int rank() const override { return rank_; }
  int size() const override { return size_; }
  bool owns_memory() const override { return false; }
  bool one_sided() const override { return false; }
  const std::byte* peer_address(int, const void*) const override {
    throw UsageError("MPI ranks cannot read peers' memory; ask one_sided() before peer_address()");
  }
  std::unique_ptr<Memory> allocate(std::int64_t bytes, std::string_view label) override {
    if (bytes < 0) throw UsageError(fmt::format("allocate: {} bytes; sizes are at least 0", bytes));
    return std::make_unique<OwnMemory>(bytes, label);
  }

  WorkPtr all_gather(const void* shard, void* whole, std::int64_t shard_bytes, Tag tag) override {
    MpiOperation op = describe(OpKind::kAllGather, DType::kOther, shard_bytes, tag);
    auto* to = static_cast<std::byte*>(whole);
    std::byte* own = to + rank_ * shard_bytes;
    if (shard_bytes > 0 && shard != own) std::memmove(own, shard, static_cast<std::size_t>(shard_bytes));
    if (shard_bytes > 0) add_gather(op, to, [=](int r) { return r * shard_bytes; });
    return start(std::move(op));
  }

  WorkPtr all_to_all(const void* sent, void* received, const PartBytes& part_bytes, Tag tag) override {
    MpiOperation op = describe(OpKind::kAllToAll, DType::kOther, sent_bytes(part_bytes, 0, size_), tag);
    add_all_to_all(op, static_cast<std::byte*>(const_cast<void*>(sent)), static_cast<std::byte*>(received), part_bytes);
    return start(std::move(op));
  }

  WorkPtr reduce_scatter(const void* whole, void* out, std::int64_t shard_numel, DType in_dtype, DType out_dtype,
                         bool accumulate, Tag tag, OnReduced on_reduced) override {
    check_reducible(in_dtype, out_dtype, accumulate, "reduce_scatter");
    MpiOperation op = describe(OpKind::kReduceScatter, in_dtype, shard_numel, tag);
    auto* from = static_cast<std::byte*>(const_cast<void*>(whole));
    const std::int64_t shard_bytes = shard_numel * element_bytes(in_dtype);
    const auto sum = [=, out = static_cast<std::byte*>(out)](const std::vector<const std::byte*>& terms) {
      reduce_ranks(terms, out, shard_numel, in_dtype, out_dtype, accumulate, on_reduced);
    };
    if (shard_numel > 0)
      add_exchange(
          op, from, [=](int r) { return r * shard_bytes; }, sum);
    return start(std::move(op));
  }

  WorkPtr all_reduce(void* data, std::int64_t numel, DType dtype, Tag tag, OnReduced on_reduced) override {
    check_reducible(dtype, dtype, false, "all_reduce");
    MpiOperation op = describe(OpKind::kAllReduce, dtype, numel, tag);
    const std::int64_t bytes = numel * element_bytes(dtype);
    auto* begin = static_cast<std::byte*>(data);
    if (size_ > 1 && bytes > kSmallReductionBytes) {
      // Slices differ by at most one element.
      const auto slice = [=, this](int r) { return numel / size_ * r + std::min<std::int64_t>(r, numel % size_); };
      const auto offset = [=](int r) { return slice(r) * element_bytes(dtype); };
      const auto sum = [=, this](const std::vector<const std::byte*>& terms) {
        reduce_ranks(terms, begin + offset(rank_), slice(rank_ + 1) - slice(rank_), dtype, dtype, false, on_reduced);
      };
      add_exchange(op, begin, offset, sum);
      add_gather(op, begin, offset);
    } else if (size_ > 1 && bytes > 0) {
      add_small_all_reduce(op, begin, numel, dtype, std::move(on_reduced));
    } else if (on_reduced && numel > 0) {
      on_reduced(0, numel);
    }
    return start(std::move(op));
  }

  WorkPtr broadcast(void* data, std::int64_t bytes, int root, Tag tag) override {
    if (root < 0 || root >= size_) {
      throw UsageError(fmt::format("broadcast from rank {}: ranks are 0 to {}", root, size_ - 1));
    }
    MpiOperation op = describe(OpKind::kBroadcast, DType::kOther, bytes, tag);
    op.call.root = root;
    if (bytes > 0 && size_ > 1) add_broadcast(op, static_cast<std::byte*>(data), bytes, root);
    return start(std::move(op));
  }

  void barrier(Tag tag) override {
    MpiOperation op = describe(OpKind::kBarrier, DType::kOther, 0, tag);
    group_->wait(*group_->start(std::move(op), true));  // an exchange of descriptions is a barrier, too
  }

  void wait_until(const std::function<bool()>& ready, int waiting_for, std::string_view what) override {
    group_->wait_until(ready, waiting_for, std::string(what));
  }
  void throw_if_aborted() override { group_->throw_if_aborted(); }
  std::chrono::milliseconds timeout() const override { return group_->timeout(); }
  void set_checking(bool checking) override { checking_ = checking; }
  void abort(std::string_view reason) override { group_->abort(std::string(reason)); }
  std::int64_t bytes_moved() const override { return bytes_moved_; }

 private:
  static MpiOperation describe(OpKind kind, DType dtype, std::int64_t numel, Tag tag) {
    MpiOperation op;
    op.call.kind = kind;
    op.call.dtype = dtype;
    op.call.numel = numel;
    if (numel < 0) throw UsageError(fmt::format("{}: sizes are at least 0", describe_call(op.call)));
    set_tag(op.call, tag);
    return op;
  }

  WorkPtr start(MpiOperation op) { return std::make_unique<MpiWork>(*group_, group_->start(std::move(op), checking_)); }

  /// The other ranks, nearest first, so that not all send to the same rank at the same time.
  std::vector<int> peers() const {
    std::vector<int> peers;
    for (int distance = 1; distance < size_; ++distance) peers.push_back((rank_ + distance) % size_);
    return peers;
  }

  /// Every rank sends its part of `whole` to all others; part r begins at offset(r) and ends at offset(r + 1).
  template <typename Offset>
  void add_gather(MpiOperation& op, std::byte* whole, Offset offset) {
    if (size_ == 1) return;
    const auto length = [=](int r) { return offset(r + 1) - offset(r); };
    op.stages.push_back({[=, this] {
                           std::vector<MpiTransfer> transfers;
                           for (const int r : peers()) transfers.push_back({r, false, whole + offset(r), length(r)});
                           for (const int r : peers()) {
                             transfers.push_back({r, true, whole + offset(rank_), length(rank_)});
                           }
                           return transfers;
                         },
                         {}});
    bytes_moved_ += length(rank_) * (size_ - 1);
  }

  /// Every rank sends its parts of `from`, and gets those of `to`.
  void add_all_to_all(MpiOperation& op, std::byte* from, std::byte* to, const PartBytes& part_bytes) {
    std::vector<MpiTransfer> transfers;
    for (int r = 0; r < size_; ++r) {
      const MpiTransfer send{r, true, from, part_bytes(rank_, r)};
      const MpiTransfer receive{r, false, to, part_bytes(r, rank_)};
      from += send.bytes;
      to += receive.bytes;
      if (r == rank_) {
        if (send.bytes > 0) std::memcpy(receive.data, send.data, static_cast<std::size_t>(send.bytes));
        continue;
      }
      if (receive.bytes > 0) transfers.push_back(receive);
      if (send.bytes > 0) transfers.push_back(send);
      bytes_moved_ += send.bytes;
    }
    if (!transfers.empty()) op.stages.push_back({[=] { return transfers; }, {}});
  }

  /// Every rank sends part r of its `whole` to rank r, which passes the parts to `sum` in the order of the ranks.
  template <typename Offset, typename Sum>
  void add_exchange(MpiOperation& op, std::byte* whole, Offset offset, Sum sum) {
    const std::int64_t own_bytes = offset(rank_ + 1) - offset(rank_);
    // Allocated when the stage starts, so that waiting collectives use no memory.
    auto received = std::make_shared<std::unique_ptr<std::byte[]>>();
    const auto slot = [=, this](int r) { return received->get() + (r < rank_ ? r : r - 1) * own_bytes; };
    MpiStage stage;
    stage.start = [=, this] {
      *received = std::make_unique_for_overwrite<std::byte[]>(static_cast<std::size_t>(own_bytes * (size_ - 1)));
      std::vector<MpiTransfer> transfers;
      for (const int r : peers()) transfers.push_back({r, false, slot(r), own_bytes});
      for (const int r : peers()) transfers.push_back({r, true, whole + offset(r), offset(r + 1) - offset(r)});
      return transfers;
    };
    stage.finish = [=, this] {
      std::vector<const std::byte*> terms;
      for (int r = 0; r < size_; ++r) terms.push_back(r == rank_ ? whole + offset(rank_) : slot(r));
      sum(terms);
    };
    op.stages.push_back(std::move(stage));
    bytes_moved_ += offset(size_) - own_bytes;
  }

  void add_small_all_reduce(MpiOperation& op, std::byte* data, std::int64_t numel, DType dtype, OnReduced on_reduced) {
    const std::int64_t bytes = numel * element_bytes(dtype);
    auto all = std::make_shared<std::vector<std::byte>>(static_cast<std::size_t>(bytes * size_));
    std::memcpy(all->data() + rank_ * bytes, data, static_cast<std::size_t>(bytes));
    add_gather(op, all->data(), [=](int r) { return r * bytes; });
    op.stages.back().finish = [=, this] {
      reduce_consecutive(all->data(), size_, data, numel, dtype, dtype, false, {});
      if (on_reduced) on_reduced(0, numel / size_);
    };
  }

  /// A binomial tree: counted from the root, rank n receives from n without its lowest bit, and sends to n plus every
  /// smaller power of two.
  void add_broadcast(MpiOperation& op, std::byte* data, std::int64_t bytes, int root) {
    const int place = (rank_ - root + size_) % size_;
    const auto rank_at = [=, this](int other) { return (other + root) % size_; };
    int step = 1;
    while (step < size_ && (place & step) == 0) step *= 2;
    std::vector<MpiTransfer> receives;
    std::vector<MpiTransfer> sends;
    if (place != 0) receives.push_back({rank_at(place - step), false, data, bytes});
    for (step /= 2; step > 0; step /= 2) {
      if (place + step < size_) sends.push_back({rank_at(place + step), true, data, bytes});
    }
    op.stages.push_back({[=] { return receives; }, {}});
    op.stages.push_back({[=] { return sends; }, {}});
    bytes_moved_ += bytes * static_cast<std::int64_t>(sends.size());
  }

  const std::shared_ptr<MpiRuntime> runtime_;  // outlives the group
  const std::shared_ptr<MpiGroup> group_;
  const int rank_;
  const int size_;
  bool checking_ = true;
  std::int64_t bytes_moved_ = 0;
};

}  // namespace

std::unique_ptr<Communicator> make_mpi_communicator(std::shared_ptr<MpiRuntime> runtime,
                                                    std::chrono::milliseconds timeout, std::int64_t message_bytes) {
  auto group = MpiGroup::make(*runtime, timeout, message_bytes);
  return std::make_unique<MpiCommunicator>(std::move(runtime), std::move(group));
}

}  // namespace zeropage::comm
