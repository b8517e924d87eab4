#include "zeropage/comm/shm/shared_memory_join.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <thread>
#include <utility>
#include <vector>

#include "zeropage/base/blocking.h"
#include "zeropage/base/error.h"
#include "zeropage/comm/shm/local_socket.h"
#include "zeropage/comm/shm/mapped_region.h"
#include "zeropage/comm/shm/process_status.h"
#include "zeropage/comm/shm/shared_file.h"

namespace zeropage::comm {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::chrono::milliseconds kAnswerPatience{100};  // rank 0 checks for requests every few milliseconds

class Joiner {
 public:
  Joiner(const std::string& name, int rank, int size, std::chrono::milliseconds timeout)
      : name_(name), rank_(rank), size_(size), timeout_(timeout), deadline_(Clock::now() + timeout) {
    const auto self = process_status(getpid());
    if (!self) throw IoError("cannot read /proc/self/stat; ranks that share memory need /proc to see each other die");
    start_time_ = self->start_time;
  }

  std::shared_ptr<ControlBlock> join() {
    const auto blocking = enter_blocking();
    return rank_ == 0 ? lead() : follow();
  }

 private:
  /// Steps 1, 2, 4 and 5.
  std::shared_ptr<ControlBlock> lead() {
    const SharedFile file = create_reserved_file(control_bytes(size_));
    auto control = map(file.fd.get());
    create_control(reinterpret_cast<std::byte*>(control.get()), size_);
    control->layout.store(kControlLayout, std::memory_order_release);
    const FileOffer offer(name_);
    claim(*control, [&] { offer.serve(file.fd.get()); });
    return control;
  }

  /// Steps 3, 4 and 5.
  std::shared_ptr<ControlBlock> follow() {
    while (true) {
      check_deadline(nullptr);
      const Descriptor file = request_file(name_, kAnswerPatience);
      if (!file) {
        nap();
        continue;
      }
      auto control = map(file.get());
      claim(*control, [] {});
      return control;
    }
  }

  /// Maps a published control block.
  std::shared_ptr<ControlBlock> map(int fd) const {
    struct stat status {};
    fstat(fd, &status);
    const std::int64_t bytes = status.st_size;
    const auto region = std::make_shared<MappedRegion>(fd, bytes, "the communicator's control block");
    std::shared_ptr<ControlBlock> control(region, reinterpret_cast<ControlBlock*>(region->data()));
    if (rank_ == 0) return control;
    const std::uint64_t layout = bytes < control_bytes(1) ? 0 : control->layout.load(std::memory_order_acquire);
    const int size = layout == 0 ? 0 : control->size.load(std::memory_order_relaxed);
    if (layout != kControlLayout || size != size_ || bytes != control_bytes(size_)) {
      throw PeerError(
          fmt::format("rank {} expects {} ranks at {}, its rank 0 has {} (layout {:x}, here {:x}); start all ranks "
                      "with the same number of ranks and the same build",
                      rank_, size_, name_, size, layout, kControlLayout));
    }
    return control;
  }

  /// Steps 4 and 5. `serve` is called repeatedly meanwhile.
  template <typename Serve>
  void claim(ControlBlock& control, const Serve& serve) {
    RankControl& self = control.rank(rank_);
    std::int64_t nobody = 0;
    if (!self.pid.compare_exchange_strong(nobody, getpid())) {
      throw PeerError(
          fmt::format("rank {} has joined {} already (pid {}); every rank joins once", rank_, name_, nobody));
    }
    self.start_time.store(start_time_, std::memory_order_release);
    control.attached.fetch_add(1, std::memory_order_acq_rel);
    while (control.attached.load(std::memory_order_acquire) != size_) {
      if (control.aborted.load(std::memory_order_acquire) == 2) {
        throw PeerError(fmt::format("rank {} gave up: {}", control.abort_rank, control.abort_reason));
      }
      serve();
      check_peers(control);
      check_deadline(&control);
      nap();
    }
  }

  void check_peers(ControlBlock& control) const {
    for (int r = 0; r < size_; ++r) {
      const std::uint64_t start_time = control.rank(r).start_time.load(std::memory_order_acquire);
      const std::int64_t pid = control.rank(r).pid.load(std::memory_order_acquire);
      if (start_time == 0 || process_lives(pid, start_time)) continue;
      throw PeerError(fmt::format(
          "rank {} (pid {}) ended while the ranks gathered at {}; see its own output for the cause", r, pid, name_));
    }
  }

  /// A rank that gives up informs those that have joined.
  void check_deadline(ControlBlock* control) const {
    if (Clock::now() < deadline_) return;
    std::vector<int> missing;
    for (int r = 0; r < size_; ++r) {
      const bool has_come = control ? control->rank(r).start_time.load(std::memory_order_acquire) != 0 : r == rank_;
      if (!has_come) missing.push_back(r);
    }
    const std::string message = fmt::format(
        "rank {} waited {} ms at {} for rank(s) {}{}; they did not start, or run on another host or in another "
        "container",
        rank_, timeout_.count(), name_, fmt::join(missing, ", "), control ? "" : " or for rank 0 to offer its memory");
    if (control != nullptr) control->abort(rank_, message);
    throw TimeoutError(message);
  }

  void nap() {
    std::this_thread::sleep_for(nap_);
    nap_ = std::min<std::chrono::microseconds>(nap_ * 2, std::chrono::milliseconds(5));
  }

  const std::string name_;
  const int rank_;
  const int size_;
  const std::chrono::milliseconds timeout_;
  const Clock::time_point deadline_;
  std::uint64_t start_time_ = 0;
  std::chrono::microseconds nap_{100};
};

}  // namespace

std::shared_ptr<ControlBlock> join_control(const std::string& name, int rank, int size,
                                           std::chrono::milliseconds timeout) {
  return Joiner(name, rank, size, timeout).join();
}

}  // namespace zeropage::comm
