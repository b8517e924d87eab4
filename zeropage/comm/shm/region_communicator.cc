#include "zeropage/comm/shm/region_communicator.h"

#include <fmt/format.h>
#include <sched.h>

#include <algorithm>
#include <cstring>
#include <exception>
#include <utility>

#include "zeropage/base/error.h"
#include "zeropage/comm/finished_work.h"
#include "zeropage/comm/reduce_kernels.h"

namespace zeropage::comm {
namespace {

constexpr int kSpins = 300;

int usable_cores() {
  cpu_set_t cores;
  return sched_getaffinity(0, sizeof(cores), &cores) == 0 ? CPU_COUNT(&cores) : 1;
}

void check_numel(std::int64_t numel, const char* what) {
  if (numel < 0) throw UsageError(fmt::format("{}: a size of {} elements; sizes are at least 0", what, numel));
}

}  // namespace

class RegionWork final : public Work {
 public:
  RegionWork(RegionCommunicator& communicator, std::shared_ptr<Operation> operation)
      : communicator_(communicator), operation_(std::move(operation)) {}

  ~RegionWork() override {
    if (operation_->complete || communicator_.owner_.is_forked()) return;
    try {
      // Its buffers may be freed after this line. With an exception in flight this rank will not continue, so the peers
      // must be informed now; otherwise they will reach this collective.
      if (std::uncaught_exceptions() > 0) {
        communicator_.abort("an error ended its " + describe_call(operation_->call));
      } else {
        wait();
      }
    } catch (const Error&) {
      // The communicator has failed; the next call on it raises the error again.
    }
  }

  bool poll() override {
    if (operation_->complete) return true;
    communicator_.advance();
    return communicator_.finish(*operation_);
  }

  void wait() override {
    if (!poll()) communicator_.wait_for(*operation_);
  }

 private:
  RegionCommunicator& communicator_;
  std::shared_ptr<Operation> operation_;
};

RegionCommunicator::RegionCommunicator(std::shared_ptr<ControlBlock> control, int rank,
                                       std::unique_ptr<RegionTransport> transport, std::chrono::milliseconds timeout,
                                       std::shared_ptr<Aborts> aborts)
    : control_(std::move(control)),
      rank_(rank),
      size_(control_->size.load(std::memory_order_relaxed)),
      transport_(std::move(transport)),
      timeout_(timeout),
      aborts_(std::move(aborts)),
      owner_(rank),
      spins_(usable_cores() >= size_ ? kSpins : 0),
      slot_free_at_(kSlots, 0) {}

RegionCommunicator::~RegionCommunicator() {
  if (owner_.is_forked()) return;  // the forked child ends; the rank has not left
  control_->rank(rank_).left.store(true, std::memory_order_release);
  control_->notify();
}

std::unique_ptr<Memory> RegionCommunicator::allocate(std::int64_t bytes, std::string_view label) {
  check_numel(bytes, "allocate");
  RegionParts parts = transport_->share(*this, bytes, label);
  return make_region_memory(memories_, next_memory_++, rank_, std::move(parts));
}

const std::byte* RegionCommunicator::peer_address(int rank, const void* local) const {
  const auto place = memories_->find(local, 0);
  if (!place) throw UsageError("peer_address: the address lies in no Memory of this communicator; use allocate()");
  return memories_->address(*place, rank);
}

WorkPtr RegionCommunicator::all_gather(const void* shard, void* whole, std::int64_t shard_bytes, Tag tag) {
  check_numel(shard_bytes, "all_gather");
  Operation op;
  op.call.kind = OpKind::kAllGather;
  op.call.numel = shard_bytes;
  op.input = static_cast<const std::byte*>(shard);
  op.output = static_cast<std::byte*>(whole);
  return start(std::move(op), tag);
}

WorkPtr RegionCommunicator::all_to_all(const void* sent, void* received, const PartBytes& part_bytes, Tag tag) {
  Operation op;
  op.call.kind = OpKind::kAllToAll;
  op.call.numel = largest_part_bytes(part_bytes, size_);
  op.input = static_cast<const std::byte*>(sent);
  op.output = static_cast<std::byte*>(received);
  op.parts.resize(static_cast<std::size_t>(size_));
  for (int q = 0; q < size_; ++q) {
    Part& part = op.parts[static_cast<std::size_t>(q)];
    part = {part_bytes(rank_, q), part_bytes(q, rank_), sent_bytes(part_bytes, q, rank_)};
    op.own_bytes += part.sent_bytes;
  }
  return start(std::move(op), tag);
}

WorkPtr RegionCommunicator::reduce_scatter(const void* whole, void* out, std::int64_t shard_numel, DType in_dtype,
                                           DType out_dtype, bool accumulate, Tag tag, OnReduced on_reduced) {
  check_numel(shard_numel, "reduce_scatter");
  check_reducible(in_dtype, out_dtype, accumulate, "reduce_scatter");
  Operation op;
  op.call.kind = OpKind::kReduceScatter;
  op.call.dtype = in_dtype;
  op.call.numel = shard_numel;
  op.input = static_cast<const std::byte*>(whole);
  op.output = static_cast<std::byte*>(out);
  op.out_dtype = out_dtype;
  op.accumulate = accumulate;
  op.on_reduced = std::move(on_reduced);
  return start(std::move(op), tag);
}

WorkPtr RegionCommunicator::all_reduce(void* data, std::int64_t numel, DType dtype, Tag tag, OnReduced on_reduced) {
  check_numel(numel, "all_reduce");
  check_reducible(dtype, dtype, false, "all_reduce");
  Operation op;
  op.call.kind = OpKind::kAllReduce;
  op.call.dtype = dtype;
  op.call.numel = numel;
  op.input = op.output = static_cast<std::byte*>(data);
  op.out_dtype = dtype;
  op.on_reduced = std::move(on_reduced);
  return start(std::move(op), tag);
}

WorkPtr RegionCommunicator::broadcast(void* data, std::int64_t bytes, int root, Tag tag) {
  check_numel(bytes, "broadcast");
  if (root < 0 || root >= size_) {
    throw UsageError(fmt::format("broadcast from rank {}: ranks are 0 to {}", root, size_ - 1));
  }
  Operation op;
  op.call.kind = OpKind::kBroadcast;
  op.call.numel = bytes;
  op.call.root = root;
  op.input = op.output = static_cast<std::byte*>(data);
  return start(std::move(op), tag);
}

void RegionCommunicator::barrier(Tag tag) { start(Operation{}, tag)->wait(); }

void RegionCommunicator::notify() { control_->notify(); }

void RegionCommunicator::abort(std::string_view reason) {
  if (owner_.is_forked()) return;
  // First, so that ranks which see the abort here find the reason there.
  if (aborts_) aborts_->publish(fmt::format("rank {} aborted: {}", rank_, reason));
  control_->abort(rank_, reason);
}

WorkPtr RegionCommunicator::start(Operation operation, Tag tag) {
  throw_if_failed();
  owner_.throw_if_forked();
  if (size_ == 1) {
    run_alone(operation);
    return std::make_unique<FinishedWork>();
  }
  reserve_slot();
  auto op = std::make_shared<Operation>(std::move(operation));
  Call& call = op->call;
  set_tag(call, tag);
  op->sequence = started_;
  Slot& slot = slot_of(rank_, started_);
  const std::int64_t bytes = own_input_bytes(*op, size_);
  if (input_bytes(call, size_) > kInlineBytes) {
    if (const auto place = memories_->find(op->input, bytes)) {
      call.memory = place->memory;
      call.memory_offset = place->offset;
    }
  } else if (bytes > 0 && (call.kind != OpKind::kBroadcast || call.root == rank_)) {
    std::memcpy(slot.payload, op->input, static_cast<std::size_t>(bytes));
  }
  slot.call = call;
  pending_.push_back(op);
  control_->rank(rank_).started.store(++started_, std::memory_order_release);
  control_->notify();
  return std::make_unique<RegionWork>(*this, std::move(op));
}

}  // namespace zeropage::comm
