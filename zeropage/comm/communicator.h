/// \file
/// The engine's interface for communication: six collectives over flat buffers, memory that peers may read, and waits
/// with a timeout. Implementations: ranks as threads of one process, ranks as processes of one host (shared memory),
/// and any c10d process group. One conformance suite (`communicator_conformance.h`) runs over all of them.
///
/// Rules that hold for every implementation:
///  - All ranks start the same collectives in the same order, and never block the starting thread for long;
///    only `Work::wait` blocks. Started collectives may run in parallel: none writes to a buffer of another that is not
///    complete.
///  - Sums are computed in fp32 (fp64 for fp64 inputs) in the order of the ranks, starting from rank 0's term, and
///    rounded once at the end: results are bit-identical on every rank and with every implementation.
///  - Every wait ends: by completion, by TimeoutError after the communicator's timeout, or by PeerError when a rank
///    died, aborted, or started another collective. The message names the collective's tag and the missing ranks.
///  - Calls come from one thread at a time per communicator.
#pragma once

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include "zeropage/base/dtype.h"

namespace zeropage::comm {

/// A collective in flight. Until it is complete, its inputs must not be changed and its outputs must not be read. The
/// destructor waits for completion, or aborts the communicator if an exception is in flight. A Work must not outlive
/// its communicator.
class Work {
 public:
  virtual ~Work() = default;

  /// Makes progress as far as possible without blocking. True once outputs are readable and inputs may be reused.
  virtual bool poll() = 0;

  /// Blocks until `poll()` would be true. Errors: TimeoutError, PeerError.
  virtual void wait() = 0;
};

using WorkPtr = std::unique_ptr<Work>;

/// Called for the results of a reduction in host memory, in ascending pieces: elements [begin, begin + numel) of this
/// rank's part of the sum have their final values. They are then still in the cache, unless a backend computed the
/// whole sum in one call. Called by a poll, a wait or the transport's thread, before the work is complete; must not
/// throw.
using OnReduced = std::function<void(std::int64_t begin, std::int64_t numel)>;

/// The number of bytes from rank `from` to rank `to` in an all_to_all: a cheap function, the same on all ranks.
using PartBytes = std::function<std::int64_t(int from, int to)>;

/// The coding of sums that are sent between hosts: fp32 values [count, shard_numel], as `count` parts of part_bytes.
/// Values and codes are where the buffers of the collective are, and do not overlap.
struct SumCodec {
  std::int64_t part_bytes = 0;  ///< of the codes of one shard
  std::function<void(const std::byte* values, std::int64_t count, std::byte* codes)> encode;
  std::function<void(const std::byte* codes, std::int64_t count, std::byte* values)> decode;
};

/// Memory of this rank that collectives use without a copy. Same size and order of allocation on all ranks. The
/// object's destructor frees this rank's part; mappings of peers' parts exist as long as their owner's object here.
class Memory {
 public:
  virtual ~Memory() = default;
  virtual std::byte* data() const = 0;
  virtual std::int64_t bytes() const = 0;

  /// Returns [offset, offset + length) to the system; it reads as zeros when touched again. For staging areas that are
  /// large in address space but little used. offset and length are rounded inwards to whole pages.
  virtual void discard(std::int64_t offset, std::int64_t length) = 0;
};

/// The purpose of a collective, for mismatch detection and messages: "gather page 3 (layers.0.weight ...)".
struct Tag {
  std::string_view what = "";  ///< a string that outlives the work (a literal, or one owned by the page table)
  std::int64_t id = 0;         ///< page index, or 0
};

class Communicator {
 public:
  virtual ~Communicator() = default;

  virtual int rank() const = 0;
  virtual int size() const = 0;

  /// The communicator of all ranks of the job: this one, unless it has one group of them (hosts/group_communicator.h).
  /// For everything that all ranks must agree on. It exists as long as this one.
  virtual Communicator& job() { return *this; }
  const Communicator& job() const { return const_cast<Communicator*>(this)->job(); }

  /// The number of this rank's group in the job; 0 if all ranks are one group.
  int group() const { return job().rank() / size(); }

  /// Memory for shards, frames and gradients, zero-filled. Collective (same order and size on all ranks). Needs only
  /// address space, not memory, until touched. Errors: IoError when the system refuses.
  virtual std::unique_ptr<Memory> allocate(std::int64_t bytes, std::string_view label) = 0;

  /// Whether its allocated memory ends with it, because it owns mappings. If not, the memory may outlive it.
  virtual bool owns_memory() const { return true; }

  /// True when peers' `Memory` can be read directly (`peer_address`), so that a gather needs no cooperation.
  virtual bool one_sided() const = 0;

  /// The address, in this process, of the byte of `rank`'s memory that corresponds to `local` in this rank's own
  /// (`local` is in a Memory of this communicator). Only when one_sided(). Cost: one lookup.
  virtual const std::byte* peer_address(int rank, const void* local) const = 0;

  /// Every rank's `shard` [shard_bytes] one after the other into `whole` [size * shard_bytes]. In place when `shard` is
  /// `whole + rank * shard_bytes`. Wire: (size-1)/size * whole bytes per rank.
  virtual WorkPtr all_gather(const void* shard, void* whole, std::int64_t shard_bytes, Tag tag) = 0;

  /// Sums `whole` [size * shard_numel, `in_dtype`] over the ranks; this rank keeps its shard in `out` [shard_numel,
  /// `out_dtype`: in_dtype or fp32]: assigned, or added to the old values if `accumulate` (then out is fp32). In place
  /// if `out` is this rank's part of `whole`. Wire: (size-1)/size * whole bytes per rank. `on_reduced`, which may be
  /// empty, is called for every element once if the sum is computed in host memory, otherwise for none.
  virtual WorkPtr reduce_scatter(const void* whole, void* out, std::int64_t shard_numel, DType in_dtype,
                                 DType out_dtype, bool accumulate, Tag tag, OnReduced on_reduced) = 0;

  /// Whether reduce_scatter_in_codes has something to spare: ranks of several hosts, several of them on each.
  virtual bool sums_by_hosts() const { return false; }

  /// As `reduce_scatter`, with other bits: the terms of a host are added exactly, its sums are sent to the other hosts
  /// as codes, and the owner adds the decoded values of all hosts, in the order of the hosts. in_dtype: not fp64. Wire
  /// between hosts: (hosts-1) parts of codes per rank. Errors: UsageError unless sums_by_hosts().
  virtual WorkPtr reduce_scatter_in_codes(const void* whole, void* out, std::int64_t shard_numel, DType in_dtype,
                                          DType out_dtype, bool accumulate, Tag tag, OnReduced on_reduced,
                                          const SumCodec& codec);

  /// Sums `data` [numel, dtype] over the ranks, in place. Wire: 2 (size-1)/size * bytes per rank. Either all ranks pass
  /// `on_reduced` or none does; with it, numel is a multiple of size. If the sum is computed in host memory, it is
  /// called for every element of this rank's part [rank * numel / size, (rank + 1) * numel / size) once, counted from
  /// the part's begin, otherwise for none.
  virtual WorkPtr all_reduce(void* data, std::int64_t numel, DType dtype, Tag tag, OnReduced on_reduced) = 0;

  /// Copies `data` [bytes] of `root` to every rank.
  virtual WorkPtr broadcast(void* data, std::int64_t bytes, int root, Tag tag) = 0;

  /// Sends every rank its part of `sent`, in which this rank's parts for rank 0, 1, ... are consecutive; `received`
  /// gets the parts from rank 0, 1, ... for this rank, consecutively. Parts may have any sizes, including 0. The
  /// buffers do not overlap. Wire: this rank's parts for others.
  virtual WorkPtr all_to_all(const void* sent, void* received, const PartBytes& part_bytes, Tag tag) = 0;

  /// The same with parts of one size: `sent` and `received` [size * part_bytes]. Errors: UsageError for a negative
  /// size.
  WorkPtr all_to_all(const void* sent, void* received, std::int64_t part_bytes, Tag tag) {
    return all_to_all(
        sent, received, [part_bytes](int, int) { return part_bytes; }, tag);
  }

  /// The number of ranks with consecutive numbers, including this one, that can gather among themselves
  /// (nearby_communicator.h): those of this host, or some of them. 1: none can.
  virtual int nearby_size() const { return 1; }

  /// As `allocate`, for all_gather_nearby. Collective over the nearby ranks.
  virtual std::unique_ptr<Memory> allocate_nearby(std::int64_t bytes, std::string_view label);

  /// As `all_gather`, over the nearby ranks: `whole` [nearby_size * shard_bytes]. Errors: UsageError if there are none.
  virtual WorkPtr all_gather_nearby(const void* shard, void* whole, std::int64_t shard_bytes, Tag tag);

  /// Returns when every rank has called it.
  virtual void barrier(Tag tag) = 0;

  /// Blocks until `ready()` (a cheap test of memory that a peer writes), with the same timeout, abort and liveness
  /// checks as every wait. `waiting_for` (a rank, or -1) and `what` go into the message.
  virtual void wait_until(const std::function<bool()>& ready, int waiting_for, std::string_view what) = 0;

  /// From any thread. Errors: PeerError when a rank has aborted. Cost: a look at memory or, over c10d, one question to
  /// the store.
  virtual void throw_if_aborted() = 0;

  /// The time after which a wait ends.
  virtual std::chrono::milliseconds timeout() const = 0;

  /// Wakes peers blocked in `wait_until`, after memory that they check was written. Cheap when no peer waits.
  virtual void notify() {}

  /// While true, which is the initial value, transports without knowledge of peers' calls (c10d) compare every
  /// collective with the peers' before it runs. Called by UncheckedScope, and by communicators that wrap others.
  virtual void set_checking(bool /*checking*/) {}

  /// Makes every current and future wait of every rank fail immediately with a PeerError with `reason` and this rank.
  /// Safe to call from any thread, more than once; the first reason counts.
  virtual void abort(std::string_view reason) = 0;

  /// Bytes this rank has sent to others (or copied from them, if memory is shared), for reports.
  virtual std::int64_t bytes_moved() const = 0;

  /// The part of them that was sent between hosts; 0 if the communicator does not know the hosts.
  virtual std::int64_t bytes_between_hosts() const { return 0; }

 protected:
  friend class UncheckedScope;
  friend std::string all_gather_small(Communicator& communicator, std::string_view mine, Tag tag);
  /// The implementation of all_gather_small; a transport with buffers on a device overrides it for host bytes.
  virtual std::string gather_host_bytes(std::string_view mine, Tag tag);

 private:
  std::atomic<int> unchecked_scopes_ = 0;
};

/// While one exists, the collectives of a communicator are not compared with the peers'. For collectives that follow
/// from others which were compared: all ranks make the same scopes around the same collectives. Scopes may overlap,
/// also those of different threads: checking resumes when the last one ends.
class UncheckedScope {
 public:
  explicit UncheckedScope(Communicator& communicator) : communicator_(communicator) {
    if (communicator_.unchecked_scopes_++ == 0) communicator_.set_checking(false);
  }
  ~UncheckedScope() {
    if (--communicator_.unchecked_scopes_ == 0) communicator_.set_checking(true);
  }
  UncheckedScope(const UncheckedScope&) = delete;
  UncheckedScope& operator=(const UncheckedScope&) = delete;

 private:
  Communicator& communicator_;
};

/// Blocks until `ready()`, a cheap test of an event in this process: of a device, or of a thread. From any thread.
/// Errors: TimeoutError after the communicator's timeout, which ends the peers' waits, too; PeerError when a rank has
/// aborted. `what`: for the message, "the gradients' way to the host".
void poll_until(Communicator& communicator, const std::function<bool()>& ready, std::string_view what);

/// Gathers the same small number of host bytes of every rank: result[r * bytes ...]. For global checks and comparisons,
/// not for pages. Blocks. Errors: as Work::wait.
std::string all_gather_small(Communicator& communicator, std::string_view mine, Tag tag);

}  // namespace zeropage::comm
