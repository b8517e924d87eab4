/// \file
/// Parameters in custom `autograd.Function`s. Such a function may read its tensors by raw pointer (Triton, pybind11
/// kernels), which bypasses the dispatcher. During an engine's first step a RecordFunction callback looks for functions
/// with parameters as arguments:
///   1. `Function.apply` is recorded with its tensor inputs and a sequence number: the inputs' pages are made resident
///      and pinned until the forward is over, and remembered under (thread, sequence number).
///   2. The function's backward node is recorded with the same pair: the pages are pinned again while it runs.
///   3. If the first step had no such function, the callback is removed, at no further cost; otherwise it stays.
/// Compiled graphs are such functions, too. Those whose operators and kernels fetch parameters themselves are called
/// within an UnobservedFunction (python/zeropage/compiled_graphs.py), and nothing is pinned for them here. While torch
/// compiles, it runs thousands of operators on tensors without values: the observer, for which torch would prepare the
/// arguments of each, is paused then (PausedObserver). Torch swallows exceptions of these callbacks. So when a page
/// cannot be gathered, the guard on its storage stays, with the cause as its message, and the function's raw access
/// raises it.
#pragma once

#include "zeropage/memory/torch_config.h"

#include <memory>

#include "zeropage/paging/parameter_link.h"

namespace zeropage::paging {

/// The observer is active while one of these objects exists (one callback per process for any number of engines).
class FunctionObserver {
 public:
  FunctionObserver();
  ~FunctionObserver();
  FunctionObserver(const FunctionObserver&) = delete;
  FunctionObserver& operator=(const FunctionObserver&) = delete;

  /// True when a custom function was seen to take a parameter of this pager.
  static bool saw_function(const PagerHandle& pager);

  /// Drops records of forwards of this pager without a backward; called at the end of a step.
  static void forget(const PagerHandle& pager);
};

/// While one of these exists, the observer ignores the next custom function that this thread calls, and its backward.
class UnobservedFunction {
 public:
  UnobservedFunction();
  ~UnobservedFunction();
  UnobservedFunction(const UnobservedFunction&) = delete;
  UnobservedFunction& operator=(const UnobservedFunction&) = delete;
};

/// While one of these exists, torch records nothing that this thread runs, if an observer is active. Made and destroyed
/// in one thread.
class PausedObserver {
 public:
  PausedObserver();
  ~PausedObserver();
  PausedObserver(const PausedObserver&) = delete;
  PausedObserver& operator=(const PausedObserver&) = delete;

 private:
  bool was_recording_;
};

}  // namespace zeropage::paging
