#include "zeropage/io/mover_thread.h"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "zeropage/base/blocking.h"
#include "zeropage/base/digest.h"
#include "zeropage/base/error.h"
#include "zeropage/io/job_files.h"

namespace zeropage::io {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

/// How often a request may complete without having moved any bytes before this is an error.
constexpr int kMaxAttempts = 16;

/// The longest sleep in a system call. It limits how late the thread finds that it should end while a drive does not
/// answer.
constexpr std::int64_t kSliceMs = 500;

double seconds(Clock::duration duration) { return std::chrono::duration<double>(duration).count(); }

}  // namespace

void MoverThread::run(std::promise<void> ready) {
  try {
    queue_ = make_queue(options_.queue);
    if (options_.wrap_queue) queue_ = options_.wrap_queue(std::move(queue_));
    description_ = queue_->describe();
    ready.set_value();
  } catch (...) {
    ready.set_exception(std::current_exception());
    return;
  }
  try {
    std::vector<Completion> done;
    while (collect()) {
      const Clock::time_point began = Clock::now();
      done.clear();
      // The drive works on the requests just put into the queue while this hashes, so hashing costs no time of the
      // drive.
      const bool writes =
          std::any_of(batch_.begin(), batch_.end(), [](const Request& request) { return request.write; });
      queue_->exchange(batch_, done, writes || !unchecked_reads_.empty() ? 0 : kSliceMs);
      if (writes) hash_writes();
      check_reads();
      for (const Completion& completion : done) handle(completion);
      const std::lock_guard lock(mutex_);
      stats_.busy_s += seconds(Clock::now() - began);
    }
  } catch (const std::exception& error) {
    fail_everything(error.what());
  }
  queue_.reset();
  const std::lock_guard lock(mutex_);
  ended_ = true;
  progress_.notify_all();
}

/// Fills the batch with the requests that can be put into the queue now. Sleeps while there is nothing to do. Returns
/// false when the thread should end.
bool MoverThread::collect() {
  batch_.clear();
  for (const std::size_t index : again_) request_rest(index);
  again_.clear();
  std::unique_lock lock(mutex_);
  const auto idle = [&] { return free_.size() == parts_.size() && unchecked_reads_.empty(); };
  work_.wait(lock, [&] { return stopping_ || !idle() || !pending_[0].empty() || !pending_[1].empty(); });
  if (stopping_) {
    for (auto& queue : pending_) queue.clear();
    if (idle()) return false;
  }
  while (!free_.empty() && !(pending_[0].empty() && pending_[1].empty())) {
    auto& queue = pending_[pending_[writes_next_].empty() ? !writes_next_ : writes_next_];
    const std::shared_ptr<BufferTransfer> transfer = queue.front();
    if (transfer->next == 0) {
      last_progress_ = Clock::now();
      transfer->begin_ns = Timeline::now_ns();
    }
    const std::size_t index = free_.back();
    free_.pop_back();
    Block& block = (*transfer->blocks)[transfer->next];
    parts_[index] = {transfer, &block, options_.queue.arena->buffer(transfer->buffer).data() + transfer->next_offset, 0,
                     0};
    request_rest(index);
    transfer->next_offset += block.bytes;
    ++transfer->next;
    ++transfer->under_way;
    if (transfer->next == transfer->blocks->size()) queue.pop_front();
    writes_next_ = !transfer->write;
  }
  return true;
}

void MoverThread::request_rest(std::size_t index) {
  const Part& part = parts_[index];
  batch_.push_back({.write = part.transfer->write,
                    .file = part.block->file,
                    .buffer = part.transfer->buffer,
                    .memory = part.memory + part.moved,
                    .offset = part.block->offset + part.moved,
                    .bytes = part.block->bytes - part.moved,
                    .tag = index});
}

void MoverThread::hash_writes() {
  for (const Request& request : batch_) {
    const Part& part = parts_[request.tag];
    if (request.write) part.block->checksum = hash64(part.memory, part.block->bytes);
  }
}

/// Compares the checksums of blocks that were read with those of their last writes.
void MoverThread::check_reads() {
  for (Part& part : unchecked_reads_) {
    std::string error;
    const std::uint64_t found = hash64(part.memory, part.block->bytes);
    if (found != part.block->checksum) {
      part.moved = 0;  // the message is about the whole block
      error = message(part, fmt::format("the {} bytes there are not what was written (checksum {:016x}, written "
                                        "{:016x}): the drive or another process changed them",
                                        part.block->bytes, found, part.block->checksum));
    }
    finish(part, error);
  }
  unchecked_reads_.clear();
}

void MoverThread::handle(const Completion& completion) {
  const std::size_t index = completion.tag;
  std::string error;
  try {
    if (!advance(parts_[index], completion.result)) {
      again_.push_back(index);
      return;
    }
  } catch (const IoError& failure) {
    error = failure.what();
  }
  const Part part = std::exchange(parts_[index], {});
  free_.push_back(index);
  if (error.empty() && !part.transfer->write) {
    unchecked_reads_.push_back(part);
  } else {
    finish(part, error);
  }
}

/// Handles a result. Returns true when the whole block has moved. Throws when the request failed.
bool MoverThread::advance(Part& part, std::int64_t result) {
  const std::int64_t rest = part.block->bytes - part.moved;
  const bool later = result == -EINTR || result == -EAGAIN;
  if (result < 0 && !later) fail_of_system(part, static_cast<int>(-result));
  if (result > rest) {
    fail(part, fmt::format("{} bytes were asked for, the system reports {} as moved", rest, result));
  }
  if (result == rest) {
    part.moved = part.block->bytes;
    return true;
  }
  // Direct I/O can continue only at an aligned offset.
  const std::int64_t moved = later ? 0 : result / kAlignment * kAlignment;
  part.moved += moved;
  part.attempts = moved > 0 ? 0 : part.attempts + 1;
  if (part.attempts == kMaxAttempts) {
    fail(part, fmt::format("{} attempts moved nothing; {}", kMaxAttempts,
                           part.transfer->write ? "the drive takes no more bytes"
                                                : "the file is too short: another program has truncated it"));
  }
  return false;
}

void MoverThread::finish(const Part& part, const std::string& error) {
  const std::shared_ptr<BufferTransfer>& transfer = part.transfer;
  const std::lock_guard lock(mutex_);
  if (error.empty()) (transfer->write ? stats_.written_bytes : stats_.read_bytes) += part.block->bytes;
  last_progress_ = Clock::now();
  --transfer->under_way;
  if (!error.empty() && transfer->error.empty()) {
    transfer->error = error;
    if (transfer->next < transfer->blocks->size()) std::erase(pending_[transfer->write], transfer);
    transfer->next = transfer->blocks->size();
  }
  if (transfer->under_way == 0 && transfer->next == transfer->blocks->size()) {
    transfer->finished = true;
    progress_.notify_all();
    if (!timeline_) return;
    std::int64_t bytes = 0;
    for (const Block& block : *transfer->blocks) bytes += block.bytes;
    timeline_->add_disk(fmt::format("{} of {}", transfer->write ? "write" : "read", transfer->name), bytes,
                        transfer->begin_ns);
  }
}

void MoverThread::fail_everything(const std::string& error) {
  const std::lock_guard lock(mutex_);
  broken_ = error;
  progress_.notify_all();
}

std::string MoverThread::message(const Part& part, const std::string& what) const {
  return fmt::format(
      "{} of {} at offset {} of {}: {}. Resume from the last checkpoint, on another drive if this happens again",
      part.transfer->write ? "write" : "read", part.transfer->name, part.block->offset + part.moved,
      options_.paths[static_cast<std::size_t>(part.block->file)], what);
}

void MoverThread::fail(const Part& part, const std::string& what) const { throw IoError(message(part, what)); }

void MoverThread::fail_of_system(const Part& part, int error) const {
  std::string what = std::strerror(error);
  if (error == ENOSPC || error == EDQUOT) {
    const int file = options_.queue.files[static_cast<std::size_t>(part.block->file)];
    what += fmt::format(" ({} bytes are needed, {} are free)", part.block->bytes - part.moved,
                        free_bytes(fmt::format("/proc/self/fd/{}", file)));
  }
  fail(part, what);
}

void MoverThread::start(std::shared_ptr<BufferTransfer> transfer) {
  const std::lock_guard lock(mutex_);
  if (transfer->blocks->empty()) {
    transfer->finished = true;
    return;
  }
  pending_[transfer->write].push_back(std::move(transfer));
  work_.notify_one();
}

void MoverThread::wait(const BufferTransfer& transfer) {
  std::unique_lock lock(mutex_);
  const auto over = [&] { return transfer.finished || !broken_.empty() || !abort_reason_.empty(); };
  if (!over()) {
    lock.unlock();
    const auto blocking = enter_blocking();
    lock.lock();
    const Clock::time_point began = Clock::now();
    const milliseconds timeout(options_.timeout_ms);
    while (!progress_.wait_until(lock, std::max(began, last_progress_) + timeout, over)) {
      if (Clock::now() - std::max(began, last_progress_) < timeout) continue;
      throw TimeoutError(
          fmt::format("{} of {}: the drive completed nothing for {} ms ({}). Look at the kernel's log (dmesg) and "
                      "which other programs use the drive",
                      transfer.write ? "write" : "read", transfer.name, options_.timeout_ms, options_.paths[0]));
    }
    stats_.waiting_s += seconds(Clock::now() - began);
  }
  if (transfer.finished) {
    if (!transfer.error.empty()) throw IoError(transfer.error);
    return;
  }
  if (!abort_reason_.empty()) throw Error(abort_reason_);
  throw IoError(broken_);
}

void MoverThread::abort(const std::string& reason) {
  const std::lock_guard lock(mutex_);
  abort_reason_ = reason;
  progress_.notify_all();
}

bool MoverThread::stop() {
  std::unique_lock lock(mutex_);
  stopping_ = true;
  work_.notify_one();
  return progress_.wait_for(lock, milliseconds(options_.timeout_ms), [&] { return ended_; });
}

}  // namespace zeropage::io
