#include <fmt/format.h>
#include <fmt/ranges.h>

#include "zeropage/engine/checkpoint.h"

namespace zeropage::engine {
namespace {

std::string listed(const std::vector<std::string>& names) {
  constexpr std::ptrdiff_t kShown = 10;
  if (std::ssize(names) <= kShown) return fmt::format("[{}]", fmt::join(names, ", "));
  return fmt::format("[{}, ...] ({} in all)", fmt::join(names.begin(), names.begin() + kShown, ", "), names.size());
}

}  // namespace

std::optional<std::string> LoadReport::warning() const {
  if (missing.empty() && unexpected.empty()) return std::nullopt;
  return fmt::format("not in the checkpoint, so unchanged: {}; not in the model: {}", listed(missing),
                     listed(unexpected));
}

}  // namespace zeropage::engine
