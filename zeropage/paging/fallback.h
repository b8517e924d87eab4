/// \file
/// Page faults. The dispatcher calls one boxed fallback for exactly those operators that receive a marked tensor: a
/// parameter, or a view, detach or saved-tensor alias of one.
///
///   1. An operator that only makes views (schema: nothing written, everything returned aliases an input) runs at once;
///      if it does need data (`reshape` of a transposed weight), the operators inside fault.
///   2. Otherwise every tensor argument's storage leads to its page; each page is made resident and pinned, and marked
///      dirty if the argument is written according to the schema.
///   3. The operator runs, with the key excluded for the operators inside (one fault check per outermost operator),
///      except under functorch transforms, whose wrappers hide parameters from the outermost operator.
///   4. The pages are unpinned, also when the operator throws. An error in 2 reaches the caller; the operator does not
///      run.
///   5. While a thread has a watcher, the key is enabled for all operators of that thread, also those without tensors
///      (`empty`, `randn`), and after 3 the watcher gets the results that are new tensors without other references.
#pragma once

#include "zeropage/memory/torch_config.h"

#include <memory>
#include <string_view>

namespace zeropage::paging {

/// Registers the fallback with the dispatcher (once per process) and tests that it is called for an operator on a
/// marked tensor.
/// Errors: Error when this torch does not dispatch on the key.
void ensure_fallback();

/// Gets new tensors when they are made.
class ResultWatcher {
 public:
  /// `result` and its storage have no other owner, so the storage may be moved to another home. `op`: the operator that
  /// made it. Errors reach the caller of the operator.
  virtual void take(const at::Tensor& result, std::string_view op) = 0;

 protected:
  ~ResultWatcher() = default;
};

/// The watcher of the calling thread, null when it has none.
std::shared_ptr<ResultWatcher> results_watcher();

/// Makes `watcher` the calling thread's; null: none.
void watch_results(std::shared_ptr<ResultWatcher> watcher);

}  // namespace zeropage::paging
