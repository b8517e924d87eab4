#include "zeropage/config/schema.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
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

std::string range_text(const Key& key) {
  if (key.low && key.high && key.below_high) return fmt::format(" >= {} and < {}", *key.low, *key.high);
  if (key.low && key.high) return fmt::format(" from {} to {}", *key.low, *key.high);
  if (key.low) return fmt::format(" {} {}", key.above_low ? ">" : ">=", *key.low);
  return "";
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

Key& Key::must_be_given() {
  required = true;
  return *this;
}

bool Key::in_range(double number) const {
  if (low && (number < *low || (above_low && number == *low))) return false;
  return !high || number < *high || (!below_high && number == *high);
}

std::string Key::expected() const {
  switch (type) {
    case Type::kBool: return "true or false";
    case Type::kInteger: return "an integer" + range_text(*this);
    case Type::kReal: return "a number" + range_text(*this);
    case Type::kReals:
      return length == 0 ? "a list of numbers" + range_text(*this)
                         : fmt::format("a list of {} numbers{}", length, range_text(*this));
    case Type::kTexts: return "a list of texts";
    case Type::kSwitchedSection: return "a section {...}";
    case Type::kText: break;
  }
  if (choices.empty()) return "a text";
  std::vector<std::string> names;
  for (const Choice& choice : choices) {
    if (choice.built) names.push_back('"' + choice.name + '"');
  }
  return (names.size() > 1 ? "one of " : "") + fmt::format("{}", fmt::join(names, ", "));
}

Key flag(std::string name, bool default_value, Status status, std::string doc) {
  return make_key(std::move(name), Type::kBool, default_value, status, std::move(doc));
}

Key integer(std::string name, Value default_value, Status status, std::string doc) {
  return make_key(std::move(name), Type::kInteger, std::move(default_value), status, std::move(doc));
}

Key real(std::string name, Value default_value, Status status, std::string doc) {
  return make_key(std::move(name), Type::kReal, std::move(default_value), status, std::move(doc));
}

Key text(std::string name, Value default_value, Status status, std::string doc) {
  return make_key(std::move(name), Type::kText, std::move(default_value), status, std::move(doc));
}

Key reals(std::string name, std::vector<double> default_value, std::size_t length, Status status, std::string doc) {
  Key key = make_key(std::move(name), Type::kReals, std::move(default_value), status, std::move(doc));
  key.length = length;
  return key;
}

Key texts(std::string name, std::vector<std::string> default_value, Status status, std::string doc) {
  return make_key(std::move(name), Type::kTexts, std::move(default_value), status, std::move(doc));
}

Key switched_section(std::string name, std::string doc) {
  return make_key(std::move(name), Type::kSwitchedSection, {}, Status::kNotBuilt, std::move(doc));
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
