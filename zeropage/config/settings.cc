#include "zeropage/config/settings.h"

#include <fmt/format.h>

#include <stdexcept>

#include "zeropage/base/error.h"

namespace zeropage::config {

bool is_automatic(const Setting& setting) {
  const auto* text = std::get_if<std::string>(&setting.value);
  return setting.key->auto_is_planned && text != nullptr && *text == "auto";
}

void Settings::add(Setting setting) {
  index_[setting.path] = settings_.size();
  settings_.push_back(std::move(setting));
}

const Setting& Settings::at(const std::string& path) const {
  const auto found = index_.find(path);
  if (found == index_.end()) throw std::logic_error("no table has the key " + path);
  return settings_[found->second];
}

void Settings::derive(const std::string& path, Value value) {
  Setting& setting = settings_[index_.at(path)];
  setting.value = std::move(value);
  setting.source = Source::kDerived;
}

void Settings::fail(const std::string& path, const std::string& what) const {
  const Setting& setting = at(path);
  fail_at(origin_, setting.source == Source::kDocument ? setting.line : 0, path, what);
}

void fail_at(const std::string& origin, int line, const std::string& path, const std::string& what) {
  throw KeyError(fmt::format("{}{}{}: {}", origin, line > 0 ? fmt::format(":{}", line) : "",
                             path.empty() ? "" : ": " + path, what),
                 line, path, what);
}

}  // namespace zeropage::config
