/// \file
/// Host memory of large tensors that are made under a watcher (fallback.h): a mapping each, so that what is freed is
/// given back. malloc would keep it: aligned blocks of one size do not fit into each other's holes once small blocks
/// lie between.
#pragma once

namespace zeropage::paging {

/// Puts an allocator in front of torch's CPU allocator, once per process. Threads without a watcher pass straight
/// through.
void ensure_scope_allocator();

}  // namespace zeropage::paging
