/// \file
/// Page faults. The dispatcher calls one boxed fallback for exactly those operators that receive a marked tensor: a
/// parameter, or a view, detach or saved-tensor alias of one.
///
///   1. An operator that only makes views (schema: nothing written, everything returned aliases an input) runs at once; should
///      it need data after all (`reshape` of a transposed weight), the operators inside fault.
///   2. Otherwise every tensor argument's storage leads to its page; each page is made resident and pinned, and marked dirty
///      where the schema says that the argument is written.
///   3. The operator runs, with the key excluded for its inside (one fault check per outermost operator), except under
///      functorch transforms, whose wrappers hide parameters until further in.
///   4. The pages are unpinned, also when the operator throws. An error in 2 reaches the caller; the operator does not run.
#pragma once

namespace zeropage::paging {

/// Registers the fallback with the dispatcher (once per process) and tests that it sees an operator on a marked tensor.
/// Errors: Error when this torch does not dispatch on the key.
void ensure_fallback();

}  // namespace zeropage::paging
