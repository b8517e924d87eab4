/// \file
/// A collective in a queue, as the caller's Work. The queue has poll(operation), wait(operation) and abort(reason), and
/// outlives the Work.
#pragma once

#include <exception>
#include <memory>
#include <utility>

#include "zeropage/comm/communicator.h"

namespace zeropage::comm {

template <class Queue, class Operation>
class QueuedWork : public Work {
 public:
  QueuedWork(Queue& queue, std::shared_ptr<Operation> operation) : queue_(queue), operation_(std::move(operation)) {}
  bool poll() final { return queue_.poll(*operation_); }
  void wait() final { queue_.wait(*operation_); }

 protected:
  /// For the destructor of the derived class: waits until the collective is complete. If an exception ends its caller,
  /// the collective may never complete, so the queue is aborted with the text of `reason()`.
  template <class Reason>
  void end(const Reason& reason) noexcept {
    try {
      if (!operation_->complete && std::uncaught_exceptions() > 0) {
        queue_.abort(reason());
      } else {
        wait();
      }
    } catch (const std::exception&) {
      // The queue has failed; the next call on it raises the error again.
    }
  }

  Queue& queue_;
  std::shared_ptr<Operation> operation_;
};

}  // namespace zeropage::comm
