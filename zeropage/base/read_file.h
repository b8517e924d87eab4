/// \file
/// Files as text.
#pragma once

#include <cstddef>
#include <limits>
#include <string>

namespace zeropage {

/// The file's first `max_bytes` bytes, all of them when it has fewer. `what` and `advice` go into messages: "cannot read the hostfile
/// /a/b: Permission denied; make it readable". Errors: IoError, also for folders.
std::string read_file(const std::string& path, const std::string& what, const std::string& advice,
                      std::size_t max_bytes = std::numeric_limits<std::size_t>::max());

}  // namespace zeropage
