/// \file
/// A thread that is about to wait for another rank says so, so that the Python layer can release the interpreter lock
/// meanwhile (ranks may be threads of one process). The rooms below Python know nothing else of an interpreter.
#pragma once

#include <memory>

namespace zeropage {

/// Whatever must be undone when the wait ends is undone by this object's destructor.
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
