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
  /// refused: gets all errors, and the check continues after them; null: the first error ends the check.
  Checker(const std::string& origin, const Planned& planned, std::vector<Remark>* refused)
      : origin_(origin), planned_(planned), refused_(refused) {}

  Settings run(const Node& document) {
    if (document.kind != Kind::kObject) {
      fail_at(origin_, document.line, "", "expected a JSON object {...}, got " + json::describe(document));
    }
    read_section(*find_section("", ""), document, document.line);
    return collect();
  }

  const std::vector<Remark>& unfilled() const { return unfilled_; }

 private:
  template <typename Step>
  void attempt(const Step& step) {
    if (refused_ == nullptr) return step();
    try {
      step();
    } catch (const KeyError& error) {
      refused_->push_back({error.line, error.path, error.problem});
    }
  }

  bool is_refused(const std::string& path) const {
    return refused_ != nullptr &&
           std::ranges::any_of(*refused_, [&](const Remark& refused) { return refused.path == path; });
  }

  void read_section(const Section& section, const Node& node, int line) {
    if (node.kind != Kind::kObject) {
      fail_at(origin_, line, section.path, "expected a section {...}, got " + json::describe(node));
    }
    if (section.presence_not_built) {
      fail_at(origin_, line, section.path,
              fmt::format("{}; remove the section ({})", refusal(section.keys.front().status), section.doc));
    }
    std::vector<const Member*> inner;
    std::vector<const Member*> dotted;
    for (const Member& member : node.members) {
      if (const Key* key = section.find(member.name)) {
        attempt([&] { read_key(section, *key, member); });
      } else if (is_section_path(inner_path(section, member.name))) {
        inner.push_back(&member);
      } else if (section.path.empty() && member.name.find('.') != std::string::npos) {
        dotted.push_back(&member);
      } else {
        attempt([&] { unknown(section, member); });
      }
    }
    refuse_not_built(section);
    // After the keys, because a key (optimizer.type) may select the variant of the section.
    for (const Member* member : inner) attempt([&] { read_inner(section, *member); });
    for (const Member* member : dotted) attempt([&] { read_dotted(section, *member); });
  }

  /// Reads `"zero_optimization.reduce_bucket_size": 4096` at the top level, as Accelerate and TRL write their computed
  /// values. It replaces the value of that key in the section.
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
      unfilled_.push_back({member.line, path, to_text(key.default_value)});
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

  bool is_off(const Section& section) const {
    return !section.switch_key.empty() && is_default(section, *section.find(section.switch_key));
  }

  void refuse_not_built(const Section& section) {
    if (is_off(section)) return;
    for (const Key& key : section.keys) {
      if (!key.refused() || is_default(section, key)) continue;
      const Given given = given_.at(section.path_of(key.name));
      const bool has_default = !std::holds_alternative<std::monostate>(key.default_value);
      attempt([&] {
        fail_at(origin_, given.line, section.path_of(given.spelled),
                fmt::format("{} is {}; remove the key{} ({})", to_text(given.value), refusal(key.status),
                            has_default ? " or set " + to_text(key.default_value) : "", key.doc));
      });
      given_.erase(section.path_of(key.name));
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
    if (section == nullptr && is_refused(path.substr(0, path.rfind('.')) + ".type")) return;
    if (section == nullptr) {
      fail_at(origin_, member.line, path,
              "expected the key \"type\" in the same section, got none; it determines the parameters");
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

  /// The value that selects one of the sections at `path`; empty when there are no variants.
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

  /// Whether a required key is "auto". A survey assumes that such a key is filled in later.
  bool waits(const std::string& path) const {
    return refused_ != nullptr &&
           std::ranges::any_of(unfilled_, [&](const Remark& remark) { return remark.path == path; });
  }

  Settings collect() {
    Settings settings(origin_);
    for (const Section& section : sections()) {
      if (find_section(section.path, variant(section.path)) != &section) continue;
      for (const Key& key : section.keys) {
        const std::string path = section.path_of(key.name);
        const auto given = given_.find(path);
        if (given != given_.end()) {
          settings.add({path, &key, given->second.value, Source::kDocument, given->second.line});
          continue;
        }
        if (key.required && !is_refused(path) && !waits(path)) {
          attempt([&] {
            fail_at(
                origin_, given_.at(section.variant_of).line, path,
                fmt::format("{} needs this key: expected {}, got nothing", section.variants.front(), key.expected()));
          });
        }
        settings.add({path, &key, key.default_value, Source::kDefault, 0});
      }
    }
    if (given_.contains("allgather_size") && !given_.contains("zero_optimization.allgather_bucket_size")) {
      attempt([&] {
        settings.fail("allgather_size",
                      "expected \"zero_optimization\": true in the file, too, which is deprecated; write "
                      "zero_optimization.allgather_bucket_size");
      });
    }
    note_without_effect();
    note_defaults(settings);
    settings.notes = notes_;
    return settings;
  }

  /// Adds a line for every value that has no effect, and one line for all keys without effect that repeat a default.
  void note_without_effect() {
    std::vector<std::string> repeated;
    for (const Section& section : sections()) {
      if (find_section(section.path, variant(section.path)) != &section || is_off(section)) continue;
      for (const Key& key : section.keys) {
        const auto given = given_.find(section.path_of(key.name));
        if (key.status != Status::kAccepted || given == given_.end()) continue;
        if (given->second.value == key.default_value) {
          repeated.push_back(given->first);
        } else {
          note(given->second.line, given->first,
               fmt::format("{} has no effect: {}", to_text(given->second.value), key.doc));
        }
      }
    }
    if (repeated.empty()) return;
    notes_.push_back(fmt::format(
        "{}: without effect, and as by default: {}; `zeropage config --from deepspeed FILE` gives the reasons", origin_,
        fmt::join(repeated, ", ")));
  }

  void note_defaults(const Settings& settings) {
    const Setting& vocabulary = settings.at("vocabulary_size");
    if (const auto* size = std::get_if<std::int64_t>(&vocabulary.value); size != nullptr && *size % 8 != 0) {
      note(vocabulary.line, vocabulary.path,
           fmt::format("{} is not a multiple of 8: products with it are faster when it is padded to {}", *size,
                       (*size + 7) / 8 * 8));
    }
    if (given_.contains("gradient_clipping") || !settings.flag("zero_optimization.compute_grad_norm")) return;
    notes_.push_back(
        fmt::format("{}: gradient_clipping is absent, so gradients are not clipped, as in PyTorch; DeepSpeed clips at "
                    "1.0 since mid-2026: write \"gradient_clipping\": 1.0 for that, or 0 for no clipping",
                    origin_));
  }

  const std::string& origin_;
  const Planned& planned_;
  std::map<std::string, Given> given_;
  std::map<std::string, Given> seen_sections_;
  std::vector<std::string> notes_;
  std::vector<Remark>* refused_;
  std::vector<Remark> unfilled_;
};

}  // namespace

Settings check(const json::Node& document, const std::string& origin, const Planned& planned) {
  return Checker(origin, planned, nullptr).run(document);
}

Survey survey(const json::Node& document, const std::string& origin) {
  const Planned nothing;
  std::vector<Remark> refused;
  Checker checker(origin, nothing, &refused);
  Settings settings = checker.run(document);
  return {std::move(settings), std::move(refused), checker.unfilled()};
}

}  // namespace zeropage::config
