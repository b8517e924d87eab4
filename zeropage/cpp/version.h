/// \file
/// Which Zeropage a program runs with.
#pragma once

namespace zeropage {

/// Of the library, "0.2.0".
const char* version();

}  // namespace zeropage
