/// \file
/// A thread calls this before it waits for another rank. The Python layer then releases the interpreter lock during the
/// wait, because ranks may be threads of one process. The rooms below Python depend on an interpreter in no other way.
#pragma once

#include <memory>

namespace zeropage {

/// Its destructor undoes, after the wait, what the factory did before the wait.
class BlockingScope {
 public:
  virtual ~BlockingScope() = default;
};

using BlockingScopeFactory = std::unique_ptr<BlockingScope> (*)();

/// Installs the factory for the whole process; nullptr removes it. Called once, when the Python module is loaded.
void set_blocking_scope_factory(BlockingScopeFactory factory);

/// Call before a wait and keep the result until it is over; null when no factory is installed.
std::unique_ptr<BlockingScope> enter_blocking();

}  // namespace zeropage
