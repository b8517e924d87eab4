/// \file
/// The family of this process. After `adopt_orphans` a descendant whose parent dies becomes a child of this process, so
/// that killing children until none is left ends every descendant, whatever sessions or groups they made for
/// themselves.
#pragma once

#include <sys/types.h>

#include <vector>

namespace zeropage::launch {

/// From now on orphaned descendants become children of this process. Errors: IoError.
void adopt_orphans();

/// Living children of this process. Cost: one pass over /proc.
std::vector<pid_t> living_children();

/// Sends SIGKILL to every child and collects the dead. True once there is no child left; call it again until then.
bool kill_children();

}  // namespace zeropage::launch
