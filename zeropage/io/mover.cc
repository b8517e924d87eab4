#include "zeropage/io/mover.h"

#include <future>
#include <utility>

#include "zeropage/base/log.h"
#include "zeropage/io/mover_thread.h"

namespace zeropage::io {

MoverStats& MoverStats::operator+=(const MoverStats& other) {
  read_bytes += other.read_bytes;
  written_bytes += other.written_bytes;
  busy_s += other.busy_s;
  waiting_s += other.waiting_s;
  return *this;
}

Mover::Mover(MoverOptions options) : thread_(std::make_shared<MoverThread>(std::move(options))) {
  std::promise<void> ready;
  std::future<void> started = ready.get_future();
  handle_ = std::thread([thread = thread_, ready = std::move(ready)]() mutable { thread->run(std::move(ready)); });
  try {
    started.get();
  } catch (...) {
    handle_.join();
    throw;
  }
}

Mover::~Mover() {
  if (thread_->stop()) {
    handle_.join();
  } else {
    log_warn("a drive does not answer: the store's last requests and their memory are not freed");
    handle_.detach();
  }
}

void Mover::start(std::shared_ptr<BufferTransfer> transfer) { thread_->start(std::move(transfer)); }
void Mover::wait(const std::shared_ptr<BufferTransfer>& transfer) { thread_->wait(*transfer); }
bool Mover::finished(const std::shared_ptr<BufferTransfer>& transfer) const { return thread_->finished(*transfer); }
void Mover::abort(const std::string& reason) { thread_->abort(reason); }
MoverStats Mover::stats() const { return thread_->stats(); }
void Mover::observe(std::shared_ptr<Timeline> timeline) { thread_->observe(std::move(timeline)); }
std::string Mover::describe() const { return thread_->describe(); }

}  // namespace zeropage::io
