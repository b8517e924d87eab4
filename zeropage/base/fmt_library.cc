// Compiles the functions of fmt once (see cmake/fmt.cmake). Debian's and Ubuntu's packages contain them only as a
// shared library, and our binaries must not need one at run time.
#include <fmt/format.h>

#include <cstdio>
#include <string>

namespace zeropage {
namespace {

/// These functions use everything that fmt does for `char`. A function that is missing here causes an "undefined
/// reference" error when linking.
[[gnu::used]] const auto kFormat = static_cast<std::string (*)(fmt::string_view, fmt::format_args)>(&fmt::vformat);
[[gnu::used]] const auto kPrint = static_cast<void (*)(std::FILE*, fmt::string_view, fmt::format_args)>(&fmt::vprint);

}  // namespace
}  // namespace zeropage
