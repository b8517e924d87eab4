#include <fmt/format.h>

#include <cerrno>
#include <cstring>

#include "zeropage/base/error.h"
#include "zeropage/io/queue.h"

#ifdef ZEROPAGE_WITH_URING
#include <liburing.h>
#include <sys/uio.h>
#endif

namespace zeropage::io {

std::unique_ptr<Queue> make_queue(const QueueOptions& options) {
  if (options.kind == QueueKind::kThreads) return make_thread_queue(options, "");
  try {
    return make_uring_queue(options);
  } catch (const IoError& refused) {
    if (options.kind == QueueKind::kUring) throw;
    return make_thread_queue(options, refused.what());
  }
}

#ifndef ZEROPAGE_WITH_URING

std::unique_ptr<Queue> make_uring_queue(const QueueOptions&) { throw IoError("built without liburing"); }

#else

namespace {

class UringQueue : public Queue {
 public:
  explicit UringQueue(const QueueOptions& options) {
    // One thread submits, and the kernel handles completions when this thread asks for them, which saves interrupts.
    // Kernels before 6.1 support neither option.
    int failed = -EINVAL;
    for (const unsigned flags : {IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN, 0U}) {
      failed = io_uring_queue_init(static_cast<unsigned>(options.depth), &ring_, flags);
      if (failed != -EINVAL) break;
    }
    if (failed != 0) throw IoError(fmt::format("io_uring: {}", std::strerror(-failed)));
    failed = io_uring_register_files(&ring_, options.files.data(), static_cast<unsigned>(options.files.size()));
    if (failed != 0) {
      io_uring_queue_exit(&ring_);
      throw IoError(fmt::format("io_uring cannot register files: {}", std::strerror(-failed)));
    }
    register_buffers(*options.arena);
  }

  ~UringQueue() override { io_uring_queue_exit(&ring_); }

  void exchange(std::span<const Request> requests, std::vector<Completion>& done, std::int64_t timeout_ms) override {
    for (const Request& request : requests) prepare(request);
    __kernel_timespec timeout{.tv_sec = timeout_ms / 1000, .tv_nsec = timeout_ms % 1000 * 1'000'000};
    io_uring_cqe* first = nullptr;
    const int result = io_uring_submit_and_wait_timeout(&ring_, &first, 1, &timeout, nullptr);
    if (result < 0 && result != -ETIME && result != -EINTR) {
      throw IoError(fmt::format("io_uring failed: {}", std::strerror(-result)));
    }
    unsigned head = 0;
    unsigned count = 0;
    io_uring_cqe* completion = nullptr;
    io_uring_for_each_cqe(&ring_, head, completion) {
      done.push_back({completion->user_data, completion->res});
      ++count;
    }
    io_uring_cq_advance(&ring_, count);
  }

  std::string describe() const override {
    return buffers_refused_.empty()
               ? "io_uring, registered files and buffers"
               : fmt::format("io_uring, registered files (buffers not: {}; ulimit -l says how much may be locked)",
                             buffers_refused_);
  }

 private:
  void register_buffers(const Arena& arena) {
    std::vector<iovec> buffers;
    for (int i = 0; i < arena.count(); ++i) {
      buffers.push_back({arena.buffer(i).data(), arena.buffer(i).size()});
    }
    const int failed = io_uring_register_buffers(&ring_, buffers.data(), static_cast<unsigned>(buffers.size()));
    if (failed != 0) buffers_refused_ = std::strerror(-failed);
  }

  void prepare(const Request& request) {
    io_uring_sqe* entry = io_uring_get_sqe(&ring_);
    if (entry == nullptr) throw IoError("io_uring: more requests than the queue's depth");
    const auto bytes = static_cast<unsigned>(request.bytes);
    const auto offset = static_cast<std::uint64_t>(request.offset);
    if (!buffers_refused_.empty()) {
      request.write ? io_uring_prep_write(entry, request.file, request.memory, bytes, offset)
                    : io_uring_prep_read(entry, request.file, request.memory, bytes, offset);
    } else {
      request.write ? io_uring_prep_write_fixed(entry, request.file, request.memory, bytes, offset, request.buffer)
                    : io_uring_prep_read_fixed(entry, request.file, request.memory, bytes, offset, request.buffer);
    }
    io_uring_sqe_set_flags(entry, IOSQE_FIXED_FILE);
    io_uring_sqe_set_data64(entry, request.tag);
  }

  io_uring ring_{};
  std::string buffers_refused_;
};

}  // namespace

std::unique_ptr<Queue> make_uring_queue(const QueueOptions& options) { return std::make_unique<UringQueue>(options); }

#endif

}  // namespace zeropage::io
