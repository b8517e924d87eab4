// The functions of fmt, compiled once: cmake/fmt.cmake says how. Debian's and Ubuntu's packages have them in a shared library alone, and
// what is built here must not need one at run time.
#include <fmt/format.h>

#include <string>

namespace zeropage {

/// Everything that fmt does for `char` is reached from here.
extern const auto kFormat = static_cast<std::string (*)(fmt::string_view, fmt::format_args)>(&fmt::vformat);

}  // namespace zeropage
