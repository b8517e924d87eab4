#include "zeropage/checkpoint/new_file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <span>
#include <vector>

#include "zeropage/base/error.h"
#include "zeropage/checkpoint/descriptor.h"
#include "zeropage/io/arena.h"
#include "zeropage/io/job_files.h"
#include "zeropage/io/queue.h"

namespace zeropage::checkpoint {
namespace {

constexpr std::int64_t kWriteBehindBytes = std::int64_t{8} << 20;
constexpr int kBuffers = 4;
constexpr std::int64_t kBufferBytes = std::int64_t{4} << 20;
constexpr std::int64_t kLookMs =
    1000;  // the longest sleep of a wait for the drive; the wait itself has no limit, like write()

[[noreturn]] void fail_for_room(const std::string& path, std::int64_t written, std::int64_t wanted, int error) {
  const std::int64_t free_bytes = io::free_bytes(path);
  const auto free = free_bytes < 0 ? std::string() : fmt::format(", {} bytes are free", free_bytes);
  throw IoError(fmt::format("write {}: {}; {} bytes are needed from offset {} on{}: free space, or save elsewhere",
                            path, std::strerror(error), wanted, written, free));
}

bool is_lack_of_room(int error) { return error == ENOSPC || error == EDQUOT || error == EFBIG; }

/// A file written through the page cache.
class CachedFile : public WritableFile {
 public:
  CachedFile(const std::string& path, std::int64_t bytes)
      : path_(path), file_(open_file(path, O_WRONLY | O_CREAT | O_EXCL)), wanted_(bytes) {
    // Not every file system supports it. Where it is not supported, a full disk is found later.
    if (bytes > 0 && ::fallocate(file_.get(), 0, 0, bytes) != 0 && is_lack_of_room(errno)) {
      fail_for_room(path_, 0, bytes, errno);
    }
  }

  void append(const std::byte* data, std::int64_t bytes) override {
    while (bytes > 0) {
      const ssize_t written = ::pwrite(file_.get(), data, static_cast<std::size_t>(bytes), written_);
      if (written < 0 && errno == EINTR) continue;
      if (written <= 0) fail_write(written < 0 ? errno : EIO, written_, bytes);
      data += written;
      bytes -= written;
      written_ += written;
    }
    if (written_ - started_ >= kWriteBehindBytes) start_write_behind();
  }

  void sync() override {
    if (::fsync(file_.get()) != 0) fail("fsync", path_, errno);
  }

  void close() override {
    if (::close(file_.release()) != 0) fail("close", path_, errno);
  }

 protected:
  int descriptor() const { return file_.get(); }

  [[noreturn]] void fail_write(int error, std::int64_t offset, std::int64_t bytes) const {
    if (is_lack_of_room(error)) fail_for_room(path_, offset, std::max(bytes, wanted_ - offset), error);
    fail("write", path_, error);
  }

  std::int64_t written_ = 0;  ///< the offset of the next append

 private:
  /// Lets the disk start to write the bytes so far, so that sync() does not wait for all of them. Does not wait.
  void start_write_behind() {
    const int result = ::sync_file_range(file_.get(), started_, written_ - started_, SYNC_FILE_RANGE_WRITE);
    if (result != 0 && errno != ENOSYS && errno != EINVAL && errno != ESPIPE) fail("write", path_, errno);
    started_ = written_;
  }

  std::string path_;
  Descriptor file_;
  std::int64_t wanted_;
  std::int64_t started_ = 0;  ///< the disk was asked to write the bytes before this offset
};

/// Steps 2 and 3 for a large file.
class DirectFile : public CachedFile {
 public:
  DirectFile(const std::string& path, std::int64_t bytes) : CachedFile(path, bytes), arena_(kBuffers, kBufferBytes) {
    if (!set_direct(true)) return;
    io::QueueOptions options;
    options.depth = kBuffers;
    options.files = {descriptor()};
    options.arena = &arena_;
    queue_ = io::make_queue(options);
    for (int buffer = 1; buffer < kBuffers; ++buffer) free_.push_back(buffer);
  }

  /// Running requests still use the buffers.
  ~DirectFile() override {
    try {
      while (under_way_ > 0) work_off({}, kLookMs);
    } catch (const Error&) {  // the first error was already reported
    }
  }

  void append(const std::byte* data, std::int64_t bytes) override {
    if (!queue_) return CachedFile::append(data, bytes);
    while (bytes > 0) {
      const std::int64_t piece = std::min(bytes, kBufferBytes - used_);
      std::memcpy(arena_.buffer(current_).data() + used_, data, static_cast<std::size_t>(piece));
      data += piece;
      bytes -= piece;
      used_ += piece;
      if (used_ == kBufferBytes) hand_over();
    }
  }

  void sync() override {
    finish();
    CachedFile::sync();
  }

  void close() override {
    finish();
    CachedFile::close();
  }

 private:
  bool set_direct(bool direct) {
    const int flags = ::fcntl(descriptor(), F_GETFL);
    return ::fcntl(descriptor(), F_SETFL, direct ? flags | O_DIRECT : flags & ~O_DIRECT) == 0;
  }

  void hand_over() {
    requests_[current_] = {true,
                           0,
                           current_,
                           arena_.buffer(current_).data(),
                           written_,
                           kBufferBytes,
                           static_cast<std::uint64_t>(current_)};
    cached_[current_] = false;
    written_ += kBufferBytes;
    used_ = 0;
    submit(current_);
    while (free_.empty()) work_off({}, kLookMs);
    current_ = free_.back();
    free_.pop_back();
  }

  void submit(int buffer) {
    ++under_way_;
    work_off({&requests_[buffer], 1}, 0);
  }

  /// Starts requests, and handles completed ones. Errors: that of the first failed request.
  void work_off(std::span<const io::Request> requests, std::int64_t timeout_ms) {
    std::vector<io::Completion> done;
    queue_->exchange(requests, done, timeout_ms);
    under_way_ -= static_cast<int>(done.size());
    std::vector<int> again;
    int error = 0;
    std::int64_t offset = 0;
    for (const auto& [tag, result] : done) {
      io::Request& request = requests_[tag];
      const std::int64_t moved = std::max<std::int64_t>(result, 0);
      request.memory += moved;
      request.offset += moved;
      request.bytes -= moved;
      // Parts that are not whole blocks any more, or that direct I/O refuses, are written through the page cache.
      const bool refused = result == -EINVAL && !cached_[tag] && set_direct(false);
      cached_[tag] = cached_[tag] || refused;
      if (request.bytes == 0) {
        free_.push_back(static_cast<int>(tag));
      } else if (moved > 0 || refused || result == -EINTR || result == -EAGAIN) {
        again.push_back(static_cast<int>(tag));
      } else if (error == 0) {
        error = result < 0 ? static_cast<int>(-result) : EIO;
        offset = request.offset;
      }
    }
    if (error != 0) fail_write(error, offset, kBufferBytes);
    for (const int buffer : again) submit(buffer);
  }

  void finish() {
    if (!queue_) return;
    while (under_way_ > 0) work_off({}, kLookMs);
    queue_.reset();
    set_direct(false);
    CachedFile::append(arena_.buffer(current_).data(), used_);
  }

  io::Arena arena_;
  std::unique_ptr<io::Queue> queue_;  ///< null: everything is written through the page cache
  std::array<io::Request, kBuffers> requests_;
  std::array<bool, kBuffers> cached_{};  ///< the request was refused as direct I/O
  std::vector<int> free_;
  int current_ = 0;        ///< the buffer that is being filled
  std::int64_t used_ = 0;  ///< its bytes
  int under_way_ = 0;
};

}  // namespace

std::unique_ptr<WritableFile> create_file(const std::string& path, std::int64_t bytes) {
  if (bytes < kBuffers * kBufferBytes) return std::make_unique<CachedFile>(path, bytes);
  return std::make_unique<DirectFile>(path, bytes);
}

}  // namespace zeropage::checkpoint
