/// \file
/// The descendants of this process. After `adopt_orphans` a descendant whose parent dies becomes a child of this
/// process. So killing children until there are none ends all descendants, whatever sessions or groups they have made.
#pragma once

#include <sys/types.h>

#include <vector>

namespace zeropage::launch {

/// From now on orphaned descendants become children of this process. Errors: IoError.
void adopt_orphans();

/// Living children of this process. Cost: one pass over /proc.
std::vector<pid_t> living_children();

/// Sends SIGKILL to every child and collects dead children. Returns true when there is no child any more; call it again
/// until then.
bool kill_children();

}  // namespace zeropage::launch
