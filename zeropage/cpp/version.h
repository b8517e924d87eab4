/// \file
/// The version of Zeropage with which a program runs.
#pragma once

namespace zeropage {

/// The version of the library, "0.2.0".
const char* version();

}  // namespace zeropage
