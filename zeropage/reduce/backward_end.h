/// \file
/// Finds the end of a backward that the engine did not start. Autograd calls back at the end of a graph task, but tasks
/// nest: a reentrant checkpoint, say, runs a backward inside of a node of another one. Only the end of the outermost
/// task is the end of the backward:
///
///   1. `watch` queues a callback on the graph task that runs now. It is called for every gradient, so each task that
///      has a gradient gets one.
///   2. Autograd evaluates no node when the outermost task ends; then the backward has ended. Else a node of the task
///      around it is being evaluated, and nothing happens.
///   3. A nested task is destroyed inside of the task around it, which gets a callback then: it need not have a
///      gradient of its own.
///   4. A task that ends in an error is destroyed without a callback. With the last task the watch is over.
#pragma once

#include "zeropage/memory/torch_config.h"

#include <functional>
#include <memory>
#include <mutex>

namespace zeropage::reduce {

class BackwardEnd {
 public:
  /// Call during a backward. The first call in it calls `begin`; then `end` is called when the backward ends, on the
  /// thread that ends it, before the caller of the backward goes on. What the two throw is thrown by that backward;
  /// after an error of `begin` nothing is watched. Cost of the further calls: some 30 ns.
  void watch(const std::function<void()>& begin, const std::function<void()>& end);

 private:
  struct Backward;
  class Callback;
  static void queue(const std::shared_ptr<Backward>& backward);

  std::weak_ptr<Backward> backward_;  // the last one; graph tasks own it
  std::mutex mutex_;
};

}  // namespace zeropage::reduce
