#include "zeropage/comm/shared_memory_join.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <thread>
#include <utility>
#include <vector>

#include "zeropage/base/blocking.h"
#include "zeropage/base/error.h"
#include "zeropage/comm/mapped_region.h"
#include "zeropage/comm/process_status.h"
#include "zeropage/comm/shared_file.h"

namespace zeropage::comm {
namespace {

using Clock = std::chrono::steady_clock;

struct stat file_status(int fd) {
  struct stat status {};
  fstat(fd, &status);
  return status;
}

void check_owner(const std::string& path, const struct stat& status) {
  if (status.st_uid == geteuid()) return;
  throw IoError(
      fmt::format("{} belongs to user {}, this process runs as user {}; choose another job name, or remove the file",
                  path, status.st_uid, geteuid()));
}

class Joiner {
 public:
  Joiner(const std::string& name, int rank, int size, std::chrono::milliseconds timeout)
      : path_("/dev/shm/" + name), rank_(rank), size_(size), timeout_(timeout), deadline_(Clock::now() + timeout) {
    const auto self = process_status(getpid());
    if (!self) throw IoError("cannot read /proc/self/stat; ranks that share memory need /proc to see each other die");
    start_time_ = self->start_time;
  }

  std::shared_ptr<ControlBlock> join() {
    const auto blocking = enter_blocking();
    while (true) {
      SharedFile file = rank_ == 0 ? create() : find();
      if (file.fd() < 0) continue;
      auto control = map(file);
      if (control && claim(*control, file)) return control;
    }
  }

 private:
  /// Steps 1 and 2.
  SharedFile create() {
    while (true) {
      const int fd = open(path_.c_str(), O_CREAT | O_EXCL | O_RDWR | O_CLOEXEC | O_NOFOLLOW, 0600);
      if (fd < 0 && errno == EEXIST) {
        remove_stale();
        continue;
      }
      if (fd < 0) throw IoError(fmt::format("cannot create {}: {}", path_, std::strerror(errno)));
      if (flock(fd, LOCK_EX | LOCK_NB) != 0 || file_status(fd).st_nlink == 0) {  // taken for stale in this very moment
        close(fd);
        continue;
      }
      SharedFile file(fd, path_, true);
      reserve_shared_file(fd, path_, control_bytes(size_));
      const MappedRegion region(fd, control_bytes(size_), "the communicator's control block");
      ControlBlock* control = create_control(region.data(), size_);
      control->creator_pid.store(getpid(), std::memory_order_relaxed);
      control->creator_start_time.store(start_time_, std::memory_order_relaxed);
      control->layout.store(kControlLayout, std::memory_order_release);
      return file;
    }
  }

  void remove_stale() {
    const int fd = open(path_.c_str(), O_RDWR | O_CLOEXEC | O_NOFOLLOW);
    if (fd < 0 && errno == ENOENT) return;
    if (fd < 0)
      throw IoError(
          fmt::format("{} exists and cannot be opened: {}; choose another job name", path_, std::strerror(errno)));
    const SharedFile file(fd, path_, false);
    check_owner(path_, file_status(fd));
    if (flock(fd, LOCK_EX | LOCK_NB) != 0) {
      throw PeerError(fmt::format("another job that is starting uses {}; choose another job name", path_));
    }
    if (file_status(fd).st_nlink > 0) ::unlink(path_.c_str());
  }

  /// Step 3, as far as the file: empty when there is none worth trying yet.
  SharedFile find() {
    check_deadline(nullptr);
    const int fd = open(path_.c_str(), O_RDWR | O_CLOEXEC | O_NOFOLLOW);
    if (fd < 0 && errno != ENOENT) throw IoError(fmt::format("cannot open {}: {}", path_, std::strerror(errno)));
    SharedFile file(fd, path_, false);
    if (fd >= 0) {
      const auto status = file_status(fd);
      check_owner(path_, status);
      if (status.st_size >= control_bytes(1) && status.st_nlink > 0) return file;
    }
    nap();
    return {};
  }

  /// Maps a published control block whose creator lives; null when it is not one (yet).
  std::shared_ptr<ControlBlock> map(const SharedFile& file) {
    const std::int64_t bytes = file_status(file.fd()).st_size;
    const auto region = std::make_shared<MappedRegion>(file.fd(), bytes, "the communicator's control block");
    std::shared_ptr<ControlBlock> control(region, reinterpret_cast<ControlBlock*>(region->data()));
    const std::uint64_t layout = control->layout.load(std::memory_order_acquire);
    const bool alive = process_lives(control->creator_pid.load(std::memory_order_relaxed),
                                     control->creator_start_time.load(std::memory_order_relaxed));
    if (layout == 0 || !alive) {
      nap();
      return nullptr;
    }
    const int size = control->size.load(std::memory_order_relaxed);
    if (layout != kControlLayout || size != size_ || bytes != control_bytes(size_)) {
      throw PeerError(
          fmt::format("rank {} expects {} ranks at {}, its rank 0 has {} (layout {:x}, here {:x}); start all ranks "
                      "with the same number of ranks and the same build",
                      rank_, size_, path_, size, layout, kControlLayout));
    }
    return control;
  }

  /// Steps 4 and 5. False when the file turned out to be a dead job's.
  bool claim(ControlBlock& control, SharedFile& file) {
    RankControl& self = control.rank(rank_);
    std::int64_t nobody = 0;
    if (!self.pid.compare_exchange_strong(nobody, getpid())) {
      if (file_status(file.fd()).st_nlink == 0) return false;
      throw PeerError(
          fmt::format("rank {} has joined {} already (pid {}); every rank joins once", rank_, path_, nobody));
    }
    self.start_time.store(start_time_, std::memory_order_release);
    control.attached.fetch_add(1, std::memory_order_acq_rel);
    while (true) {
      const bool removed = file_status(file.fd()).st_nlink == 0;  // read first: it is removed after all have attached
      if (control.attached.load(std::memory_order_acquire) == size_) break;
      if (control.aborted.load(std::memory_order_acquire) == 2) {
        throw PeerError(fmt::format("rank {} gave up: {}", control.abort_rank, control.abort_reason));
      }
      if (removed) return false;
      check_peers(control);
      check_deadline(&control);
      nap();
    }
    if (rank_ == 0) file.unlink();
    return true;
  }

  void check_peers(ControlBlock& control) const {
    for (int r = 0; r < size_; ++r) {
      const std::uint64_t start_time = control.rank(r).start_time.load(std::memory_order_acquire);
      const std::int64_t pid = control.rank(r).pid.load(std::memory_order_acquire);
      if (start_time == 0 || process_lives(pid, start_time)) continue;
      throw PeerError(fmt::format(
          "rank {} (pid {}) ended while the ranks gathered at {}; see its own output for the cause", r, pid, path_));
    }
  }

  /// A rank that gives up tells those that have come.
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
        rank_, timeout_.count(), path_, fmt::join(missing, ", "), control ? "" : " or for rank 0 to create it");
    if (control != nullptr) control->abort(rank_, message);
    throw TimeoutError(message);
  }

  void nap() {
    std::this_thread::sleep_for(nap_);
    nap_ = std::min<std::chrono::microseconds>(nap_ * 2, std::chrono::milliseconds(5));
  }

  const std::string path_;
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
