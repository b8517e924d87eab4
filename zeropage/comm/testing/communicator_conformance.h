/// \file
/// The requirements of every communicator, as a function: tests run it over threads, processes and c10d process groups.
#pragma once

#include "zeropage/comm/communicator.h"

namespace zeropage::comm {

/// Runs every collective over sizes, dtypes, in-place forms, private and allocated memory, and compares each element
/// with a scalar computation, bit for bit. All ranks call it. Buffers are read by the host. Takes about a second.
/// Errors: Error, with the collective, its result and the expected one; and the communicator's exceptions.
void run_conformance(Communicator& communicator);

}  // namespace zeropage::comm
