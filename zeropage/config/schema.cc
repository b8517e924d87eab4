#include "zeropage/config/schema.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>

#include "zeropage/config/tables.h"

namespace zeropage::config {
namespace {

Key make_key(std::string name, Type type, Value default_value, Status status, std::string doc) {
  Key key;
  key.name = std::move(name);
  key.type = type;
  key.default_value = std::move(default_value);
  key.status = status;
  key.doc = std::move(doc);
  return key;
}

std::vector<Section> all_tables() {
  std::vector<Section> all;
  for (const auto table : {top_level_tables, precision_tables, optimizer_tables, scheduler_tables, zero_tables,
                           own_tables, storage_tables, monitor_tables, automation_tables}) {
    for (Section& section : table()) all.push_back(std::move(section));
  }
  return all;
}

}  // namespace

std::string type_name(Type type) {
  static constexpr std::array<const char*, 7> kNames = {"bool",    "integer", "number", "text",
                                                        "numbers", "strings", "section"};
  return kNames.at(static_cast<std::size_t>(type));
}

std::string to_text(const Value& value) {
  return std::visit(
      [](const auto& held) -> std::string {
        if constexpr (std::is_same_v<std::decay_t<decltype(held)>, std::monostate>)
          return "null";
        else
          return nlohmann::json(held).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
      },
      value);
}

Key& Key::at_least(double value) {
  low = value;
  return *this;
}

Key& Key::positive() {
  above_low = true;
  return at_least(0);
}

Key& Key::between(double smallest, double largest) {
  low = smallest;
  high = largest;
  return *this;
}

Key& Key::from_up_to(double smallest, double not_reached) {
  below_high = true;
  return between(smallest, not_reached);
}

Key& Key::one_of(std::vector<Choice> allowed) {
  choices = std::move(allowed);
  return *this;
}

Key& Key::also_named(std::initializer_list<std::string> names) {
  aliases = names;
  return *this;
}

Key& Key::or_one_string() {
  one_text = true;
  return *this;
}

Key& Key::must_be_given() {
  required = true;
  return *this;
}

Key& Key::or_auto() {
  auto_is_planned = true;
  return *this;
}

Key& Key::or_fraction() {
  rounds_down = true;
  return *this;
}

Key& Key::differing(std::string how) {
  differs = std::move(how);
  return *this;
}

Key& Key::deepspeed_default(std::string value) {
  other_default = std::move(value);
  return *this;
}

bool Key::has_auto_choice() const {
  if (type == Type::kStrings) return true;
  if (type != Type::kString) return false;
  return choices.empty() || std::ranges::any_of(choices, [](const Choice& choice) { return choice.name == "auto"; });
}

bool Key::in_range(double number) const {
  if (low && (number < *low || (above_low && number == *low))) return false;
  return !high || number < *high || (!below_high && number == *high);
}

std::string Key::range() const {
  if (!choices.empty()) {
    std::vector<std::string> names;
    for (const Choice& choice : choices) {
      if (choice.built()) names.push_back('"' + choice.name + '"');
    }
    return fmt::format("{}", fmt::join(names, ", "));
  }
  if (low && high && below_high) return fmt::format(">= {} and < {}", *low, *high);
  if (low && high) return fmt::format("from {} to {}", *low, *high);
  if (low) return fmt::format("{} {}", above_low ? ">" : ">=", *low);
  return "";
}

std::string Key::expected() const {
  static constexpr std::array<const char*, 7> kNouns = {"true or false",  "an integer",        "a number",
                                                        "a string",       "a list of numbers", "a list of strings",
                                                        "a section {...}"};
  const std::string limits = range();
  if (!choices.empty()) return limits.find(',') == std::string::npos ? limits : "one of " + limits;
  if (one_text) return "a string or a list of strings";
  const std::string noun =
      length == 0 ? kNouns.at(static_cast<std::size_t>(type)) : fmt::format("a list of {} numbers", length);
  return limits.empty() ? noun : noun + " " + limits;
}

Key flag(std::string name, bool default_value, Status status, std::string doc) {
  return make_key(std::move(name), Type::kBool, default_value, status, std::move(doc));
}

Key integer(std::string name, Value default_value, Status status, std::string doc) {
  return make_key(std::move(name), Type::kInteger, std::move(default_value), status, std::move(doc));
}

Key real(std::string name, Value default_value, Status status, std::string doc) {
  return make_key(std::move(name), Type::kFloat, std::move(default_value), status, std::move(doc));
}

Key string(std::string name, Value default_value, Status status, std::string doc) {
  return make_key(std::move(name), Type::kString, std::move(default_value), status, std::move(doc));
}

Key floats(std::string name, std::vector<double> default_value, std::size_t length, Status status, std::string doc) {
  Key key = make_key(std::move(name), Type::kFloats, std::move(default_value), status, std::move(doc));
  key.length = length;
  return key;
}

Key strings(std::string name, std::vector<std::string> default_value, Status status, std::string doc) {
  return make_key(std::move(name), Type::kStrings, std::move(default_value), status, std::move(doc));
}

Key switched_section(std::string name, Status status, std::string doc) {
  return make_key(std::move(name), Type::kSwitchedSection, {}, status, std::move(doc));
}

const char* refusal(Status status) {
  return status == Status::kRemoved ? "not available in this version, and was removed from DeepSpeed in 2026"
                                    : "not available in this version";
}

const Key* Section::find(const std::string& name_or_alias) const {
  for (const Key& key : keys) {
    if (key.name == name_or_alias || std::ranges::count(key.aliases, name_or_alias) > 0) return &key;
  }
  return nullptr;
}

const std::vector<Section>& sections() {
  static const std::vector<Section> all = all_tables();
  return all;
}

const Section* find_section(const std::string& path, const std::string& variant) {
  for (const Section& section : sections()) {
    const bool selected = section.variants.empty() || std::ranges::count(section.variants, variant) > 0;
    if (section.path == path && selected) return &section;
  }
  return nullptr;
}

bool is_section_path(const std::string& path) {
  return std::ranges::any_of(
      sections(), [&](const Section& section) { return section.path == path || section.path.starts_with(path + "."); });
}

}  // namespace zeropage::config
