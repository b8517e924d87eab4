#include "zeropage/config/convert.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "zeropage/base/letter_case.h"
#include "zeropage/base/suggest.h"

namespace zeropage::config {
namespace {

using json::Kind;
using json::Node;

bool is_fraction(const Node& node) {
  return node.kind == Kind::kNumber && !node.integer && std::abs(node.number) < 0x1p63;
}

std::string hint(const Key& key, const Node& node) {
  const bool wants_number = key.type == Type::kInteger || key.type == Type::kFloat;
  if (node.kind == Kind::kString && (wants_number || key.type == Type::kBool)) return "; write it without quotes";
  if (node.kind == Kind::kBool && wants_number) return "; true and false are not numbers";
  if (node.kind == Kind::kNumber && key.type == Type::kInteger && !node.integer) {
    return is_fraction(node) ? "; it has a fraction" : "; it must fit in 64 bits";
  }
  if (node.kind == Kind::kNumber && key.type == Type::kBool) return "; write true or false";
  if (node.kind == Kind::kNumber && key.type == Type::kString) return "; write it in quotes";
  return "";
}

Converted mismatch(const Key& key, const Node& node) {
  return {{}, fmt::format("expected {}, got {}{}", key.expected(), json::describe(node), hint(key, node))};
}

Converted convert_text(const Key& key, const Node& node) {
  if (key.choices.empty()) return {node.text, ""};
  std::vector<std::string> names;
  for (const Choice& choice : key.choices) {
    const auto is = [&](const std::string& name) { return equal_ignoring_case(name, node.text); };
    if (is(choice.name) || std::ranges::any_of(choice.also, is)) {
      if (choice.built()) return {choice.name, ""};
      return {{}, fmt::format("\"{}\" is {}; use {}", choice.name, refusal(choice.status), key.expected())};
    }
    if (choice.built()) names.push_back(choice.name);
  }
  Converted failed = mismatch(key, node);
  const std::string near = nearest(node.text, names);
  if (!near.empty()) failed.error += fmt::format("; did you mean \"{}\"?", near);
  return failed;
}

Converted convert_list(const Key& key, const Node& node) {
  std::vector<double> numbers;
  std::vector<std::string> words;
  for (const Node& item : node.items) {
    if (key.type == Type::kFloats && item.kind == Kind::kNumber && key.in_range(item.number)) {
      numbers.push_back(item.number);
    } else if (key.type == Type::kStrings && item.kind == Kind::kString) {
      words.push_back(item.text);
    } else {
      return {{}, fmt::format("expected {}, got {} in it", key.expected(), json::describe(item))};
    }
  }
  if (key.length != 0 && numbers.size() != key.length) return mismatch(key, node);
  if (key.type == Type::kFloats) return {std::move(numbers), ""};
  return {std::move(words), ""};
}

Converted convert_switched_section(const Key& key, const Node& node) {
  const auto is_off = [](const json::Member& member) {
    return member.name == "enabled" && member.value.kind == Kind::kBool && !member.value.boolean;
  };
  if (node.members.empty() || std::ranges::any_of(node.members, is_off)) return {};
  return {{}, fmt::format("{}; remove the section or set \"enabled\": false in it ({})", refusal(key.status), key.doc)};
}

}  // namespace

Converted convert(const Key& key, const Node& node) {
  switch (key.type) {
    case Type::kBool:
      if (node.kind == Kind::kBool) return {node.boolean, ""};
      break;
    case Type::kInteger:
      if (node.kind == Kind::kNumber && node.integer && key.in_range(node.number)) return {*node.integer, ""};
      if (key.rounds_down && is_fraction(node) && key.in_range(std::floor(node.number))) {
        const auto rounded = static_cast<std::int64_t>(std::floor(node.number));
        return {rounded, "", fmt::format("{} is rounded down to {}", json::describe(node), rounded)};
      }
      break;
    case Type::kFloat:
      if (node.kind == Kind::kNumber && key.in_range(node.number)) return {node.number, ""};
      break;
    case Type::kString:
      if (node.kind == Kind::kString) return convert_text(key, node);
      break;
    case Type::kFloats:
    case Type::kStrings:
      if (node.kind == Kind::kString && key.one_text) return {std::vector<std::string>{node.text}, ""};
      if (node.kind == Kind::kArray) return convert_list(key, node);
      break;
    case Type::kSwitchedSection:
      if (node.kind == Kind::kObject) return convert_switched_section(key, node);
      break;
  }
  return mismatch(key, node);
}

}  // namespace zeropage::config
