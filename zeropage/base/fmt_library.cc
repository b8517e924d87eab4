// The functions of fmt, compiled once: cmake/fmt.cmake says how. Debian's and Ubuntu's packages have them in a shared
// library alone, and what is built here must not need one at run time.
#include <fmt/format.h>

#include <cstdio>
#include <string>

namespace zeropage {
namespace {

/// Everything that fmt does for `char` is reached from these. A function that is missing here is an "undefined
/// reference" when linking.
[[gnu::used]] const auto kFormat = static_cast<std::string (*)(fmt::string_view, fmt::format_args)>(&fmt::vformat);
[[gnu::used]] const auto kPrint = static_cast<void (*)(std::FILE*, fmt::string_view, fmt::format_args)>(&fmt::vprint);

}  // namespace
}  // namespace zeropage
