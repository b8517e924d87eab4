#include "zeropage/comm/aborts.h"

#include <fmt/format.h>

#include <exception>
#include <mutex>
#include <utility>

#include "zeropage/base/error.h"

namespace zeropage::comm {
namespace {

class ThreadAborts final : public Aborts {
 public:
  void publish(const std::string& reason) noexcept override {
    const std::scoped_lock lock(mutex_);
    if (reason_.empty()) reason_ = reason;
  }
  std::string reason() noexcept override {
    const std::scoped_lock lock(mutex_);
    return reason_;
  }

 private:
  std::mutex mutex_;
  std::string reason_;
};

class CommunicatorAborts final : public Aborts {
 public:
  explicit CommunicatorAborts(std::shared_ptr<Communicator> all) : all_(std::move(all)) {}

  void publish(const std::string& reason) noexcept override {
    try {
      all_->abort(reason);
    } catch (const std::exception&) {
      // The other ranks then notice it by their timeout.
    }
  }
  std::string reason() noexcept override {
    try {
      all_->throw_if_aborted();
    } catch (const PeerError& error) {
      return error.what();
    } catch (const std::exception&) {
      // Nothing is known, as in a forked process.
    }
    return "";
  }

 private:
  const std::shared_ptr<Communicator> all_;
};

class PartAborts final : public Aborts {
 public:
  PartAborts(std::shared_ptr<Aborts> job, std::string part) : job_(std::move(job)), part_(std::move(part)) {}

  void publish(const std::string& reason) noexcept override { job_->publish(fmt::format("{}: {}", part_, reason)); }
  std::string reason() noexcept override { return job_->reason(); }

 private:
  const std::shared_ptr<Aborts> job_;
  const std::string part_;
};

}  // namespace

std::shared_ptr<Aborts> make_thread_aborts() { return std::make_shared<ThreadAborts>(); }

std::shared_ptr<Aborts> aborts_of(std::shared_ptr<Communicator> all) {
  return std::make_shared<CommunicatorAborts>(std::move(all));
}

std::shared_ptr<Aborts> aborts_of_part(std::shared_ptr<Aborts> job, std::string part) {
  return job ? std::make_shared<PartAborts>(std::move(job), std::move(part)) : nullptr;
}

}  // namespace zeropage::comm
