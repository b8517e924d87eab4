/// \file
/// Host memory of large tensors that are made under a watcher (fallback.h): one mapping each, so that freed memory is
/// returned to the system. malloc would keep it: aligned blocks of one size do not fit into each other's gaps once
/// small blocks are between them.
#pragma once

namespace zeropage::paging {

/// Puts an allocator in front of torch's CPU allocator, once per process. Threads without a watcher use torch's
/// allocator directly.
void ensure_scope_allocator();

}  // namespace zeropage::paging
