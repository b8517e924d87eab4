/// \file
/// The shared control data of ranks that share memory.
///
/// The protocol of one collective (the s-th of this communicator on every rank, s = 0, 1, ...):
///  1. A rank writes the description of its call to its slot s % kSlots (with inputs of at most kInlineBytes) and
///     stores `started` = s + 1.
///  2. When all ranks have started s, every rank compares their calls; a difference aborts the communicator. The calls
///     also tell where the inputs are, so all ranks take the same route:
///       inline all inputs are in the slots: one step, which reads them;
///       direct all inputs are in shared memory: read them there (all_reduce: sum one slice, then copy the others');
///       staged some input is private: copied through the bounce buffers chunk by chunk; one half of the own buffer is
///       filled while the peers read the other.
///  3. A route is a number of steps. `base` of s is the number of steps of all collectives before s. A rank that has
///     done k steps of s stores base + k in `done` of its slot. A step may begin when every rank has done the previous
///     step; the first step of an inline or direct collective needs only 2. So a late rank does all possible steps of
///     all collectives that its peers have started, before it waits.
///  4. A staged collective has exclusive use of the bounce buffers: it begins when all ranks have done all earlier
///     collectives (`progress`, the steps of the collectives up to the first that this rank has not done), and no later
///     one begins before this rank has done it.
///  5. The collective is complete when this rank has done all steps (inline), or all ranks have (direct and staged:
///     until then they may be reading this rank's memory).
///  6. Slot s % kSlots is written again when the `progress` of all ranks includes s.
/// Every publication increments `event` and wakes the ranks that sleep on it.
#pragma once

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "zeropage/comm/call.h"

namespace zeropage::comm {

constexpr std::uint64_t kSlots = 64;
constexpr std::int64_t kInlineBytes = 4096;
constexpr std::int64_t kBounceBytes = 256 * 1024;  // of each half; fits the second-level cache
constexpr int kMaxRanks = 1024;

struct alignas(64) Slot {
  Call call;
  std::atomic<std::uint64_t> done{0};  ///< only increases, also from one collective to the next in this slot
  alignas(64) std::byte payload[kInlineBytes];
};

/// Written by one rank (`pid` and `start_time` once, when it joins), read by all.
struct alignas(64) RankControl {
  std::atomic<std::int64_t> pid{0};
  std::atomic<std::uint64_t> start_time{0};
  std::atomic<bool> left{false};
  alignas(64) std::atomic<std::uint64_t> started{0};
  std::atomic<std::uint64_t> progress{0};
  Slot slots[kSlots];
  alignas(64) std::byte bounce[2][kBounceBytes];
};

/// Followed in memory by one RankControl per rank. All of it starts as zeros.
struct alignas(64) ControlBlock {
  std::atomic<std::uint64_t> layout{0};  ///< kControlLayout once the creator has filled in the next three
  std::atomic<std::int32_t> size{0};
  std::atomic<std::int32_t> attached{0};

  alignas(64) std::atomic<std::uint32_t> event{0};
  std::atomic<std::uint32_t> sleepers{0};

  alignas(64) std::atomic<std::uint32_t> aborted{0};  ///< 0 no, 1 the reason is being written, 2 yes
  std::int32_t abort_rank = 0;
  char abort_reason[2000] = {};

  RankControl& rank(int r) { return reinterpret_cast<RankControl*>(this + 1)[r]; }

  /// Wakes all ranks in `sleep_until_event`. Cost: one atomic addition; a system call only if a rank sleeps.
  void notify();

  /// Sleeps until `notify` is called after `event` had the value `seen`, or at most `limit`; may return early.
  void sleep_until_event(std::uint32_t seen, std::chrono::microseconds limit);

  /// Makes `aborted` true for every rank; the first reason counts. Safe from any thread.
  void abort(int rank, std::string_view reason);
};

/// "zeropage" and a number that changes with the layout above: ranks of different builds reject each other.
constexpr std::uint64_t kControlLayout = 0x7a65726f70000003;

/// Bytes of a control block and its ranks.
constexpr std::int64_t control_bytes(int size) {
  return static_cast<std::int64_t>(sizeof(ControlBlock)) + size * static_cast<std::int64_t>(sizeof(RankControl));
}

/// Constructs a control block in zero-filled memory of control_bytes(size).
ControlBlock* create_control(std::byte* memory, int size);

/// Copies the start of `text` that fits, with a terminating zero, to `to` [capacity].
void copy_text(std::string_view text, char* to, std::size_t capacity);

}  // namespace zeropage::comm
