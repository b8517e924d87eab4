/// \file
/// Finds the end of a backward that the engine did not start. Autograd calls back at the end of a graph task, but tasks
/// nest: for example, a reentrant checkpoint runs a backward inside a node of another one. Only the end of the
/// outermost task is the end of the backward:
///
///   1. `watch` queues a callback on the graph task that runs now. It is called for every gradient, so each task that
///      has a gradient gets one.
///   2. If autograd evaluates no node when a task ends, it was the outermost task, and the backward has ended.
///      Otherwise a node of the enclosing task is being evaluated, and nothing happens.
///   3. A nested task is destroyed inside the enclosing task, which then gets a callback, even if it has no gradient
///      itself.
///   4. A task that ends in an error is destroyed without a callback. The watch ends with the last task.
#pragma once

#include "zeropage/memory/torch_config.h"

#include <functional>
#include <memory>
#include <mutex>

namespace zeropage::reduce {

class BackwardEnd {
 public:
  /// Call during a backward. The first call in it calls `begin`; then `end` is called when the backward ends, on the
  /// thread that ends it, before the caller of the backward continues. Exceptions of the two are thrown by that
  /// backward; after an error of `begin` nothing is watched. Cost of the further calls: some 30 ns.
  void watch(const std::function<void()>& begin, const std::function<void()>& end);

 private:
  struct Backward;
  class Callback;
  static void queue(const std::shared_ptr<Backward>& backward);

  std::weak_ptr<Backward> backward_;  // the last one; graph tasks own it
  std::mutex mutex_;
};

}  // namespace zeropage::reduce
