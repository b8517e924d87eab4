#include "zeropage/comm/shm/region_operation.h"

#include <algorithm>
#include <cstring>

#include "zeropage/base/checked.h"
#include "zeropage/comm/reduce_kernels.h"

namespace zeropage::comm {
namespace {

struct Range {
  std::int64_t begin;
  std::int64_t count;
};

void copy(std::byte* to, const std::byte* from, std::int64_t bytes) {
  if (to != from && bytes > 0) std::memcpy(to, from, static_cast<std::size_t>(bytes));
}

/// Whether an input has a slice for each rank.
bool is_scattered(const Call& call) { return call.kind == OpKind::kReduceScatter || call.kind == OpKind::kAllToAll; }

std::int64_t slices_per_input(const Call& call, int size) { return is_scattered(call) ? size : 1; }

/// Elements of each slice that fit one half of the bounce buffer.
std::int64_t chunk_numel(const Call& call, int size) {
  const std::int64_t fitting = kBounceBytes / (slices_per_input(call, size) * element_bytes(call.dtype));
  return std::max<std::int64_t>(fitting / 64 * 64, 1);
}

/// The part of an all_reduce over `count` elements that `rank` sums: its own part if they divide evenly.
Range slice_of_rank(std::int64_t count, int rank, int size) {
  const std::int64_t slice = count / size;
  if (slice * size == count) return {slice * rank, slice};
  const std::int64_t aligned = round_up(slice + 1, 16);  // slices start at cache lines if the buffer does
  const std::int64_t begin = std::min(count, aligned * rank);
  return {begin, std::min(aligned, count - begin)};
}

/// The steps of one rank, for one chunk; inline and direct routes have one chunk, the whole input.
class RankSteps {
 public:
  RankSteps(const Operation& op, ControlBlock& control, int rank)
      : op_(op),
        call_(op.call),
        control_(control),
        rank_(rank),
        size_(control.size.load(std::memory_order_relaxed)),
        element_(element_bytes(op.call.dtype)),
        stride_(op.route == Route::kStaged ? chunk_numel(op.call, size_) : op.call.numel) {}

  /// Copies chunk `chunk` of this rank's input to memory that the peers can read.
  void stage(std::int64_t chunk) {
    if (call_.kind == OpKind::kBroadcast && call_.root != rank_) return;
    const Range range = range_of(chunk);
    if (call_.kind == OpKind::kAllToAll) return stage_parts(chunk, range);
    for (std::int64_t s = 0; s < slices_per_input(call_, size_); ++s) {
      copy(bounce(rank_, chunk) + s * stride_ * element_, op_.input + (s * call_.numel + range.begin) * element_,
           range.count * element_);
    }
  }

  /// all_reduce: sums this rank's slice of the chunk over its own contribution, which no other rank reads.
  std::int64_t sum_slice(std::int64_t chunk) {
    const Range slice = slice_of_rank(range_of(chunk).count, rank_, size_);
    const bool staged = op_.route == Route::kStaged;
    std::byte* target = staged ? bounce(rank_, chunk) : op_.output;
    reduce(chunk, slice.begin, target + slice.begin * element_, slice.count, staged ? OnReduced() : op_.on_reduced);
    return slice.count * element_ * (size_ - 1);
  }

  /// Reads this rank's share of the chunk from all ranks. Returns the bytes read from others.
  std::int64_t read(std::int64_t chunk) {
    const Range range = range_of(chunk);
    switch (call_.kind) {
      case OpKind::kAllGather:
        for (int q = 0; q < size_; ++q) {
          if (q != rank_) copy(op_.output + (q * call_.numel + range.begin), source(q, chunk), range.count);
        }
        return range.count * (size_ - 1);
      case OpKind::kAllToAll: return read_parts(chunk, range);
      case OpKind::kReduceScatter:
        reduce(chunk, 0, op_.output + range.begin * element_bytes(op_.out_dtype), range.count,
               written_from(range.begin));
        return range.count * element_ * (size_ - 1);
      case OpKind::kAllReduce:
        if (op_.route != Route::kInline) return read_slices(chunk, range);
        reduce(chunk, 0, op_.output, range.count);
        tell_own(range);
        return range.count * element_ * (size_ - 1);
      case OpKind::kBroadcast:
        if (rank_ == call_.root) return 0;
        copy(op_.output + range.begin, source(call_.root, chunk), range.count);
        return range.count;
      case OpKind::kBarrier: return 0;
    }
    return 0;
  }

 private:
  /// all_to_all: stages `range` of this rank's parts, each in a slot of the largest part's size.
  void stage_parts(std::int64_t chunk, Range range) {
    const std::byte* part = op_.input;
    for (std::int64_t s = 0; s < size_; ++s) {
      const std::int64_t bytes = op_.parts[static_cast<std::size_t>(s)].sent_bytes;
      copy(bounce(rank_, chunk) + s * stride_, part + range.begin, std::min(range.count, bytes - range.begin));
      part += bytes;
    }
  }

  /// all_to_all: reads `range` of the parts for this rank.
  std::int64_t read_parts(std::int64_t chunk, Range range) const {
    std::int64_t moved_bytes = 0;
    std::byte* to = op_.output;
    for (int q = 0; q < size_; ++q) {
      const Part& part = op_.parts[static_cast<std::size_t>(q)];
      const std::int64_t bytes = std::min(range.count, part.received_bytes - range.begin);
      copy(to + range.begin, source(q, chunk), bytes);
      if (q != rank_ && bytes > 0) moved_bytes += bytes;
      to += part.received_bytes;
    }
    return moved_bytes;
  }

  Range range_of(std::int64_t chunk) const {
    const std::int64_t begin = chunk * stride_;
    return {begin, std::min(stride_, call_.numel - begin)};
  }

  std::byte* bounce(int q, std::int64_t chunk) const { return control_.rank(q).bounce[chunk % 2]; }

  /// The address of rank q's contribution to this rank's part of the chunk.
  const std::byte* source(int q, std::int64_t chunk) const {
    const std::byte* base = nullptr;
    switch (op_.route) {
      case Route::kInline: base = control_.rank(q).slots[op_.sequence % kSlots].payload; break;
      case Route::kDirect: base = op_.peer_inputs[static_cast<std::size_t>(q)]; break;
      case Route::kStaged: base = bounce(q, chunk); break;
    }
    if (call_.kind == OpKind::kAllToAll && op_.route != Route::kStaged) {
      return base + op_.parts[static_cast<std::size_t>(q)].begin;
    }
    return is_scattered(call_) ? base + rank_ * stride_ * element_ : base;
  }

  /// The callback for pieces of a chunk that begins at `first`.
  OnReduced written_from(std::int64_t first) const {
    if (!op_.on_reduced) return {};
    return [this, first](std::int64_t begin, std::int64_t numel) { op_.on_reduced(first + begin, numel); };
  }

  void reduce(std::int64_t chunk, std::int64_t begin, std::byte* out, std::int64_t count,
              const OnReduced& on_reduced = {}) const {
    std::vector<const std::byte*> inputs(static_cast<std::size_t>(size_));
    for (int q = 0; q < size_; ++q) inputs[static_cast<std::size_t>(q)] = source(q, chunk) + begin * element_;
    reduce_ranks(inputs, out, count, call_.dtype, op_.out_dtype, op_.accumulate, on_reduced);
  }

  /// all_reduce, after every rank has summed its slice: copies the slices to the output.
  std::int64_t read_slices(std::int64_t chunk, Range range) const {
    std::int64_t moved_bytes = 0;
    for (int q = 0; q < size_; ++q) {
      const Range slice = slice_of_rank(range.count, q, size_);
      copy(op_.output + (range.begin + slice.begin) * element_, source(q, chunk) + slice.begin * element_,
           slice.count * element_);
      if (q != rank_) moved_bytes += slice.count * element_;
    }
    if (op_.route == Route::kStaged) tell_own(range);
    return moved_bytes;
  }

  /// all_reduce, called when `range` has just been written to the output: reports the elements in this rank's part.
  void tell_own(Range range) const {
    if (!op_.on_reduced) return;
    const std::int64_t part = call_.numel / size_;
    const std::int64_t begin = std::max(range.begin, part * rank_);
    const std::int64_t end = std::min(range.begin + range.count, part * (rank_ + 1));
    if (begin < end) op_.on_reduced(begin - part * rank_, end - begin);
  }

  const Operation& op_;
  const Call& call_;
  ControlBlock& control_;
  const int rank_;
  const int size_;
  const std::int64_t element_;
  const std::int64_t stride_;
};

void copy_own_shard(const Operation& op, int rank) {
  if (op.call.kind == OpKind::kAllGather) copy(op.output + rank * op.call.numel, op.input, op.call.numel);
}

}  // namespace

std::int64_t input_bytes(const Call& call, int size) {
  return call.numel * element_bytes(call.dtype) * slices_per_input(call, size);
}

std::int64_t own_input_bytes(const Operation& op, int size) {
  return op.call.kind == OpKind::kAllToAll ? op.own_bytes : input_bytes(op.call, size);
}

std::int64_t count_steps(const Operation& op, int size) {
  const bool sums_slices = op.call.kind == OpKind::kAllReduce && op.route != Route::kInline;
  if (op.route != Route::kStaged) return sums_slices ? 2 : 1;
  const std::int64_t chunk = chunk_numel(op.call, size);
  const std::int64_t chunks = ceil_div(op.call.numel, chunk);
  return 1 + chunks * (sums_slices ? 2 : 1);
}

std::int64_t run_step(const Operation& op, ControlBlock& control, int rank) {
  RankSteps step(op, control, rank);
  if (op.step == 0) copy_own_shard(op, rank);
  const bool sums_slices = op.call.kind == OpKind::kAllReduce && op.route != Route::kInline;
  if (op.route != Route::kStaged) return sums_slices && op.step == 0 ? step.sum_slice(0) : step.read(0);
  if (op.step == 0) {
    step.stage(0);
    return 0;
  }
  const std::int64_t steps_per_chunk = sums_slices ? 2 : 1;
  const std::int64_t chunk = (op.step - 1) / steps_per_chunk;
  if (sums_slices && (op.step - 1) % 2 == 0) return step.sum_slice(chunk);
  const std::int64_t moved_bytes = step.read(chunk);
  if (op.step + 1 < op.steps) step.stage(chunk + 1);
  return moved_bytes;
}

void run_alone(const Operation& op) {
  copy_own_shard(op, 0);
  if (op.call.kind == OpKind::kAllToAll) copy(op.output, op.input, op.call.numel);
  const bool in_place = op.output == op.input && op.out_dtype == op.call.dtype && !op.accumulate;
  if (op.call.kind == OpKind::kReduceScatter && !in_place) {
    reduce_ranks(std::span(&op.input, 1), op.output, op.call.numel, op.call.dtype, op.out_dtype, op.accumulate,
                 op.on_reduced);
  } else if (op.on_reduced) {
    op.on_reduced(0, op.call.numel);
  }
}

}  // namespace zeropage::comm
