/// \file
/// The communicator of ranks that share memory: threads of one process or processes of one host. The protocol is
/// described in region_control.h. There are no helper threads: a collective advances during polls and waits on the same
/// communicator, and every wait advances all started collectives.
///
/// Cost: a collective of at most 4 KiB per rank is one exchange of cache lines. Larger ones read each peer's part once:
/// in place if it is in a Memory, otherwise through a bounce buffer that fits the cache.
#pragma once

#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "zeropage/comm/aborts.h"
#include "zeropage/comm/communicator.h"
#include "zeropage/comm/owner_process.h"
#include "zeropage/comm/shm/region_control.h"
#include "zeropage/comm/shm/region_memory.h"
#include "zeropage/comm/shm/region_operation.h"

namespace zeropage::comm {

/// The differences between threads and processes.
class RegionTransport {
 public:
  virtual ~RegionTransport() = default;

  /// The state of a rank that cannot answer any more ("pid 12 has ended"); empty while it can.
  virtual std::string lost(int rank) const = 0;

  /// For messages about a late rank: "pid 12, stopped by a signal"; may be empty.
  virtual std::string describe(int rank) const = 0;

  /// Collective: zero-filled memory of `bytes` on every rank, mapped by every rank. Errors: IoError, PeerError.
  virtual RegionParts share(Communicator& communicator, std::int64_t bytes, std::string_view label) = 0;
};

class RegionCommunicator final : public Communicator {
 public:
  /// `control` is shared by all ranks, which have all attached. `aborts`: null if no other communicator aborts with
  /// this one.
  RegionCommunicator(std::shared_ptr<ControlBlock> control, int rank, std::unique_ptr<RegionTransport> transport,
                     std::chrono::milliseconds timeout, std::shared_ptr<Aborts> aborts);
  /// Tells the peers that this rank has left: those that still need it get a PeerError.
  ~RegionCommunicator() override;

  int rank() const override { return rank_; }
  int size() const override { return size_; }
  std::unique_ptr<Memory> allocate(std::int64_t bytes, std::string_view label) override;
  bool one_sided() const override { return true; }
  const std::byte* peer_address(int rank, const void* local) const override;
  WorkPtr all_gather(const void* shard, void* whole, std::int64_t shard_bytes, Tag tag) override;
  WorkPtr reduce_scatter(const void* whole, void* out, std::int64_t shard_numel, DType in_dtype, DType out_dtype,
                         bool accumulate, Tag tag, OnReduced on_reduced) override;
  WorkPtr all_reduce(void* data, std::int64_t numel, DType dtype, Tag tag, OnReduced on_reduced) override;
  WorkPtr broadcast(void* data, std::int64_t bytes, int root, Tag tag) override;
  WorkPtr all_to_all(const void* sent, void* received, const PartBytes& part_bytes, Tag tag) override;
  void barrier(Tag tag) override;
  void wait_until(const std::function<bool()>& ready, int waiting_for, std::string_view what) override;
  void throw_if_aborted() override;
  std::chrono::milliseconds timeout() const override { return timeout_; }
  void notify() override;
  void abort(std::string_view reason) override;
  std::int64_t bytes_moved() const override { return bytes_moved_; }

 private:
  friend class RegionWork;

  /// A rank's wait and its description for messages.
  struct Wait {
    std::function<bool()> done;
    std::function<std::vector<int>()> missing;  ///< the ranks that it needs
    std::function<std::string()> what;
    bool peers_notify;  ///< false if `done` depends on memory that peers may write without a wake-up
  };

  WorkPtr start(Operation operation, Tag tag);
  void reserve_slot();
  void advance();
  bool agree(Operation& op);
  void choose_route(Operation& op);
  void run_steps(Operation& op);
  Slot& slot_of(int rank, std::uint64_t sequence) const { return control_->rank(rank).slots[sequence % kSlots]; }
  bool peer_did(int rank, const Operation& op, std::int64_t steps) const;
  bool peers_did(const Operation& op, std::int64_t steps) const;
  bool peers_reached(std::uint64_t progress) const;
  bool finish(Operation& op);

  void throw_if_failed();
  void throw_if_job_aborted();
  void block(const Wait& wait);
  void throw_if_lost(const Wait& wait);
  [[noreturn]] void throw_timeout(const Wait& wait);
  std::string describe_position(int rank) const;
  std::vector<int> ranks_behind(std::uint64_t progress) const;
  std::vector<int> ranks_missing(const Operation& op) const;
  void wait_for(Operation& op);

  const std::shared_ptr<ControlBlock> control_;
  const int rank_;
  const int size_;
  const std::unique_ptr<RegionTransport> transport_;
  const std::chrono::milliseconds timeout_;
  const std::shared_ptr<Aborts> aborts_;  ///< may be null
  const OwnerProcess owner_;
  const int spins_;

  std::shared_ptr<RegionTable> memories_ = std::make_shared<RegionTable>();
  std::int64_t next_memory_ = 0;
  std::deque<std::shared_ptr<Operation>> pending_;  ///< started; begins with one that is not executed
  std::uint64_t started_ = 0;
  std::uint64_t agreed_progress_ = 0;        ///< progress at the end of the last agreed collective
  std::vector<std::uint64_t> slot_free_at_;  ///< progress that all ranks must reach before a slot is reused
  std::int64_t bytes_moved_ = 0;
};

}  // namespace zeropage::comm
