#include "zeropage/config/effective.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

namespace zeropage::config {
namespace {

using OrderedJson = nlohmann::ordered_json;

OrderedJson to_json(const Value& value) {
  return std::visit(
      [](const auto& held) -> OrderedJson {
        if constexpr (std::is_same_v<std::decay_t<decltype(held)>, std::monostate>)
          return nullptr;
        else
          return held;
      },
      value);
}

/// The member of nested objects that a dotted path names, created on the way.
OrderedJson& place(OrderedJson& root, std::string_view path) {
  OrderedJson* at = &root;
  while (true) {
    const std::size_t dot = path.find('.');
    at = &(*at)[std::string(path.substr(0, dot))];
    if (dot == std::string_view::npos) return *at;
    path.remove_prefix(dot + 1);
  }
}

/// Keys without effect are listed only if the document sets them, with a note.
bool is_listed(const Setting& setting) {
  return setting.key->status == Status::kSupported ||
         (setting.key->status == Status::kAccepted && setting.source == Source::kDocument);
}

std::string source_text(const Setting& setting) {
  switch (setting.source) {
    case Source::kDefault: return "default";
    case Source::kDerived: return "derived";
    case Source::kDocument: break;
  }
  const char* note = setting.key->status == Status::kAccepted ? " (accepted, no effect)" : "";
  return fmt::format("line {}{}", setting.line, note);
}

}  // namespace

std::string effective_json(const Settings& settings) {
  OrderedJson root = OrderedJson::object();
  for (const Setting& setting : settings.all()) {
    if (setting.key->status == Status::kSupported) place(root, setting.path) = to_json(setting.value);
  }
  return root.dump(2);
}

std::string describe(const std::string& json_text, const std::string& origin, int world_size) {
  const Resolved resolved = resolve(json_text, origin, world_size);
  std::size_t path_width = 0;
  std::size_t value_width = 0;
  for (const Setting& setting : resolved.settings.all()) {
    if (!is_listed(setting)) continue;
    path_width = std::max(path_width, setting.path.size());
    value_width = std::max(value_width, to_text(setting.value).size());
  }
  std::string out = fmt::format("{}, {}\n", origin,
                                world_size > 0 ? fmt::format("world size {}", world_size)
                                               : "world size not given: batch sizes that depend on it stay null");
  for (const Setting& setting : resolved.settings.all()) {
    if (!is_listed(setting)) continue;
    out += fmt::format("{:<{}}  {:<{}}  {}\n", setting.path, path_width, to_text(setting.value), value_width,
                       source_text(setting));
  }
  for (const std::string& note : resolved.settings.notes) out += "note: " + note + "\n";
  return out;
}

}  // namespace zeropage::config
