#include "zeropage/config/check.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <map>

#include "zeropage/base/suggest.h"
#include "zeropage/config/convert.h"

namespace zeropage::config {
namespace {

using json::Kind;
using json::Member;
using json::Node;

struct Given {
  Value value;
  int line = 0;
  std::string spelled;  ///< the name in the document, which may be an alias
};

class Checker {
 public:
  Checker(const std::string& origin, const Planned& planned) : origin_(origin), planned_(planned) {}

  Settings run(const Node& document) {
    if (document.kind != Kind::kObject) {
      fail_at(origin_, document.line, "", "expected a JSON object {...}, got " + json::describe(document));
    }
    read_section(*find_section("", ""), document, document.line);
    return collect();
  }

 private:
  void read_section(const Section& section, const Node& node, int line) {
    if (node.kind != Kind::kObject) {
      fail_at(origin_, line, section.path, "expected a section {...}, got " + json::describe(node));
    }
    if (section.presence_not_built) {
      fail_at(origin_, line, section.path, "not available in this version; remove the section");
    }
    std::vector<const Member*> inner;
    std::vector<const Member*> dotted;
    for (const Member& member : node.members) {
      if (const Key* key = section.find(member.name)) {
        read_key(section, *key, member);
      } else if (is_section_path(inner_path(section, member.name))) {
        inner.push_back(&member);
      } else if (section.path.empty() && member.name.find('.') != std::string::npos) {
        dotted.push_back(&member);
      } else {
        unknown(section, member);
      }
    }
    refuse_not_built(section);
    // After the keys, because a key (optimizer.type) may say which section is meant.
    for (const Member* member : inner) read_inner(section, *member);
    for (const Member* member : dotted) read_dotted(section, *member);
  }

  /// `"zero_optimization.reduce_bucket_size": 4096` at the top level, as Accelerate and TRL write what they compute:
  /// the key of that section, instead of what the section says.
  void read_dotted(const Section& top, const Member& member) {
    const auto dot = member.name.rfind('.');
    const std::string path = inner_path(top, member.name.substr(0, dot));
    const Section* section = is_section_path(path) ? find_section(path, variant(path)) : nullptr;
    const Key* key = section == nullptr ? nullptr : section->find(member.name.substr(dot + 1));
    if (key == nullptr) unknown(top, member);
    const std::string full_path = section->path_of(key->name);
    auto given = given_.extract(full_path);
    read_key(*section, *key, {key->name, member.line, member.value});
    refuse_not_built(*section);
    if (!given_.contains(full_path)) {  // null, or "auto" that nothing filled in
      if (!given.empty()) given_.insert(std::move(given));
      return;
    }
    const std::string instead = given.empty() ? "" : fmt::format(" instead of {}", to_text(given.mapped().value));
    note(member.line, json::printable(member.name), "a name with a dot outside its section sets that key" + instead);
  }

  void read_key(const Section& section, const Key& key, const Member& member) {
    const std::string path = section.path_of(key.name);
    const Node& node = member.value;
    if (node.kind == Kind::kNull) return;
    if (key.infinity_is_absent && node.kind == Kind::kNotFinite && node.text == "Infinity") return;
    if (node.kind == Kind::kString && node.text == "auto" && !key.auto_is_planned && !key.has_auto_choice()) {
      note(member.line, path,
           fmt::format("nothing filled in the value \"auto\"; the default {} is used", to_text(key.default_value)));
      return;
    }
    Converted converted = is_planned(key, node) ? planned_value(path) : convert(key, node);
    if (!converted.error.empty()) fail_at(origin_, member.line, section.path_of(member.name), converted.error);
    if (!converted.note.empty()) note(member.line, path, converted.note);
    const auto [first, is_new] = given_.emplace(path, Given{std::move(converted.value), member.line, member.name});
    if (!is_new) twice(section, member, first->second);
  }

  void note(int line, const std::string& path, const std::string& what) {
    notes_.push_back(fmt::format("{}:{}: {}: {}", origin_, line, path, what));
  }

  static bool is_planned(const Key& key, const Node& node) {
    return key.auto_is_planned && node.kind == Kind::kString && node.text == "auto";
  }

  Converted planned_value(const std::string& path) const {
    const auto chosen = planned_.find(path);
    if (chosen == planned_.end()) return {std::string("auto"), ""};
    return {std::visit([](const auto& value) -> Value { return value; }, chosen->second), ""};
  }

  [[noreturn]] void twice(const Section& section, const Member& member, const Given& first) const {
    fail_at(origin_, member.line, section.path_of(member.name),
            fmt::format("the same key as \"{}\" on line {}; give one of them", first.spelled, first.line));
  }

  void refuse_not_built(const Section& section) const {
    const bool off = !section.switch_key.empty() && is_default(section, *section.find(section.switch_key));
    for (const Key& key : section.keys) {
      if (key.status != Status::kNotBuilt || off || is_default(section, key)) continue;
      const Given& given = given_.at(section.path_of(key.name));
      const bool has_default = !std::holds_alternative<std::monostate>(key.default_value);
      fail_at(origin_, given.line, section.path_of(given.spelled),
              fmt::format("{} is not available in this version; remove the key{} ({})", to_text(given.value),
                          has_default ? " or set " + to_text(key.default_value) : "", key.doc));
    }
  }

  bool is_default(const Section& section, const Key& key) const {
    const auto given = given_.find(section.path_of(key.name));
    return given == given_.end() || given->second.value == key.default_value;
  }

  /// Full path of the section that `name` means inside `section`, aliases resolved.
  static std::string inner_path(const Section& section, const std::string& name) {
    for (const Section& other : sections()) {
      if (!other.alias.empty() && section.path_of(other.alias) == section.path_of(name)) return other.path;
    }
    return section.path_of(name);
  }

  void read_inner(const Section& outer, const Member& member) {
    const std::string path = inner_path(outer, member.name);
    if (member.value.kind == Kind::kNull) return;
    const auto [first, is_new] = seen_sections_.emplace(path, Given{{}, member.line, member.name});
    if (!is_new) twice(outer, member, first->second);
    if (path == "zero_optimization" && member.value.kind == Kind::kBool) {
      read_deprecated_zero(member);
      return;
    }
    const Section* section = find_section(path, variant(path));
    if (section == nullptr) {
      fail_at(origin_, member.line, path,
              "expected the key \"type\" beside it, got none; it says which parameters these are");
    }
    read_section(*section, member.value, member.line);
  }

  /// `"zero_optimization": true`: stage 1, with the top-level allgather_size as its bucket.
  void read_deprecated_zero(const Member& member) {
    given_["zero_optimization.stage"] = {std::int64_t{member.value.boolean}, member.line, member.name};
    if (const auto size = given_.find("allgather_size"); size != given_.end()) {
      given_["zero_optimization.allgather_bucket_size"] = size->second;
    }
  }

  /// The value that selects among the sections at `path`; empty when they have no variants.
  std::string variant(const std::string& path) const {
    for (const Section& section : sections()) {
      if (section.path != path || section.variant_of.empty()) continue;
      const auto given = given_.find(section.variant_of);
      return given == given_.end() ? "" : std::get<std::string>(given->second.value);
    }
    return "";
  }

  [[noreturn]] void unknown(const Section& section, const Member& member) const {
    std::vector<std::string> names;
    for (const Key& key : section.keys) {
      names.push_back(key.name);
      names.insert(names.end(), key.aliases.begin(), key.aliases.end());
    }
    std::vector<std::string> homes;
    for (const Section& other : sections()) {
      const std::string prefix = section.path_of("");
      if (other.path.size() > prefix.size() && other.path.starts_with(prefix)) {
        names.push_back(other.path.substr(prefix.size(), other.path.find('.', prefix.size()) - prefix.size()));
      }
      if (other.find(member.name) == nullptr) continue;
      const std::string home = other.path.empty() ? "the top level" : fmt::format("\"{}\"", other.path);
      if (other.variants.empty()) {
        homes.push_back(home);
      } else if (const std::string of = home + " of "; !homes.empty() && homes.back().starts_with(of)) {
        homes.back() += ", " + other.variants.front();
      } else {
        homes.push_back(of + other.variants.front());
      }
    }
    std::string what = "expected a known key, got an unknown one";
    const std::string near = nearest(member.name, names);
    if (!near.empty()) {
      what += fmt::format("; did you mean \"{}\"?", near);
    } else if (!homes.empty() && homes.size() <= 4) {
      what += fmt::format("; it belongs in {}", fmt::join(homes, " or "));
    } else {
      what += "; remove it (docs/config.md lists all keys)";
    }
    fail_at(origin_, member.line, section.path_of(json::printable(member.name)), what);
  }

  Settings collect() const {
    Settings settings(origin_);
    settings.notes = notes_;
    for (const Section& section : sections()) {
      if (find_section(section.path, variant(section.path)) != &section) continue;
      for (const Key& key : section.keys) {
        const std::string path = section.path_of(key.name);
        const auto given = given_.find(path);
        if (given != given_.end()) {
          settings.add({path, &key, given->second.value, Source::kDocument, given->second.line});
          continue;
        }
        if (key.required) {
          fail_at(origin_, given_.at(section.variant_of).line, path,
                  fmt::format("{} needs this key: expected {}, got nothing", section.variants.front(), key.expected()));
        }
        settings.add({path, &key, key.default_value, Source::kDefault, 0});
      }
    }
    if (given_.contains("allgather_size") && !given_.contains("zero_optimization.allgather_bucket_size")) {
      settings.fail("allgather_size",
                    "expected \"zero_optimization\": true beside it, which is deprecated; write "
                    "zero_optimization.allgather_bucket_size");
    }
    return settings;
  }

  const std::string& origin_;
  const Planned& planned_;
  std::map<std::string, Given> given_;
  std::map<std::string, Given> seen_sections_;
  std::vector<std::string> notes_;
};

}  // namespace

Settings check(const json::Node& document, const std::string& origin, const Planned& planned) {
  return Checker(origin, planned).run(document);
}

}  // namespace zeropage::config
