/// \file
/// The collectives that the ranks of one MPI communicator have started, as messages between pairs of ranks.
///
///  1. A collective is a list of stages: sends and receives that are posted together, and a function to call when all
///     are done. Checked collectives begin with an exchange of their descriptions.
///  2. Stages of one collective run in order; collectives do not wait for each other: the tag of a message is the
///     number of its collective, and messages with one tag arrive in the order of the stages. Data that is too long for
///     one message is split.
///  3. MPI's thread (mpi_runtime.h) posts, tests and finishes stages. Callers wait at a condition variable with a
///     deadline; the messages that have not arrived show which ranks are missing.
///  4. The first error ends everything: its text is sent to every rank in a control message, for which every rank has a
///     receive posted at all times. Unmatched receives are cancelled and the others get a short time to finish, before
///     waits throw and buffers may be freed.
///  5. A rank that closes sends a control message. A rank that still needs it gets an error, one second later, so that
///     data that was sent before arrives first. The MPI communicator is freed when all have closed.
#pragma once

#include <mpi.h>

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "zeropage/comm/call.h"
#include "zeropage/comm/mpi/mpi_runtime.h"

namespace zeropage::comm {

struct MpiTransfer {
  int peer = 0;
  bool send = false;
  std::byte* data = nullptr;
  std::int64_t bytes = 0;
};

struct MpiStage {
  std::function<std::vector<MpiTransfer>()> start;
  std::function<void()> finish;  ///< may be empty
};

struct MpiOperation {
  Call call;
  std::uint64_t sequence = 0;
  std::vector<MpiStage> stages;

  // Used only by MPI's thread.
  struct Message {
    int peer;
    bool send;
    int bytes;
  };
  std::size_t stage = 0;
  bool posted = false;
  std::vector<MPI_Request> requests;  ///< null ones are done
  std::vector<Message> messages;      ///< the message of each request

  // Guarded by the group's mutex.
  std::vector<int> missing;
  bool complete = false;
};

class MpiGroup final : public MpiPoller {
 public:
  using Clock = std::chrono::steady_clock;

  /// A duplicate of MPI_COMM_WORLD that `runtime` polls. Collective. Errors: IoError, TimeoutError.
  static std::shared_ptr<MpiGroup> make(MpiRuntime& runtime, std::chrono::milliseconds timeout,
                                        std::int64_t message_bytes);

  int rank() const { return rank_; }
  int size() const { return size_; }

  /// Adds `operation`, with a comparison with the peers' first if `check`. Does not block. Errors: PeerError.
  std::shared_ptr<MpiOperation> start(MpiOperation operation, bool check);

  /// True when `operation` is complete. Errors: PeerError.
  bool poll(MpiOperation& operation);

  /// Returns when `operation` is complete. Errors: PeerError, TimeoutError.
  void wait(MpiOperation& operation);

  /// Blocks until `ready`; `peer` is the rank it depends on, or -1. Errors: PeerError, TimeoutError.
  void wait_until(const std::function<bool()>& ready, int peer, const std::string& what);

  /// From any thread. Errors: PeerError.
  void throw_if_aborted();
  std::chrono::milliseconds timeout() const { return timeout_; }

  /// Makes every current and future wait of every rank fail. Safe from any thread; the first reason counts.
  void abort(const std::string& reason);

  /// Call when nothing more will be started. Does not block.
  void close();

  Progress progress() override;
  bool end() override;

 private:
  MpiGroup(MpiRuntime& runtime, std::chrono::milliseconds timeout, std::int64_t message_bytes)
      : runtime_(runtime), timeout_(timeout), message_bytes_(message_bytes) {}

  bool open();
  void wait_until_open();
  MpiStage make_check(const MpiOperation& operation) const;
  bool advance(MpiOperation& operation);
  void post(MpiOperation& operation);
  bool test(MpiOperation& operation);
  void note_missing(MpiOperation& operation);
  bool wind_down();
  bool exchange_control();
  void listen();
  void tell_all(char kind, const std::string& text);

  void fail(const std::string& failure, bool tell);
  void throw_if_failed(std::unique_lock<std::mutex>& lock);
  void throw_if_closed(std::unique_lock<std::mutex>& lock, const std::vector<int>& missing, const std::string& what);
  [[noreturn]] void time_out(std::unique_lock<std::mutex>& lock, const std::vector<int>& missing,
                             const std::string& what);

  MpiRuntime& runtime_;
  const std::chrono::milliseconds timeout_;
  const std::int64_t message_bytes_;
  int rank_ = 0;
  int size_ = 1;

  // Used only by MPI's thread.
  MPI_Comm comm_ = MPI_COMM_NULL;
  MPI_Request opening_ = MPI_REQUEST_NULL;
  std::vector<std::shared_ptr<MpiOperation>> active_;
  std::vector<char> heard_;  ///< the buffer of the receive for control messages
  MPI_Request hearing_ = MPI_REQUEST_NULL;
  std::vector<std::unique_ptr<std::string>> told_;
  std::vector<MPI_Request> telling_;
  Clock::time_point cancelled_at_{};
  bool farewell_told_ = false;

  // Guarded by the mutex.
  std::mutex mutex_;
  std::condition_variable changed_;
  bool open_ = false;
  std::uint64_t next_sequence_ = 0;
  std::vector<std::shared_ptr<MpiOperation>> started_;  ///< not yet taken over by MPI's thread
  std::vector<Clock::time_point> closed_at_;            ///< by rank; the epoch: open
  std::string failure_;
  bool tell_failure_ = false;
  bool quiet_ = false;  ///< after a failure: no buffer of a caller is in use
  bool closing_ = false;
};

}  // namespace zeropage::comm
