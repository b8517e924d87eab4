/// \file
/// Writes docs/config.md from the tables.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include "zeropage/config/effective.h"
#include "zeropage/config/schema.h"

namespace zeropage::config {
namespace {

constexpr const char* kOpening =
    R"(<!-- Generated from zeropage/config/tables_*.cc. Do not edit: change the tables, then run config_tests with ZEROPAGE_WRITE_DOCS=1. -->
# ds_config.json

The file may contain `//`, `#` and `/* */` comments. `null` counts as absent. Integers may be spelt `5e8`. Texts with a choice
are matched without regard to case. Keys that are not listed, duplicate keys and values of another type or range are errors that name
the line. Keys whose range says so may be `"auto"`: the three batch sizes follow from each other, and the others are chosen from the
model and free memory when the engine is made ([which stage](which-stage.md)).

Some values that training libraries write are accepted, with a message on rank 0: `"auto"` in any other key counts as absent, sizes of `zero_optimization` with a fraction are rounded down, and a key such as `"zero_optimization.reduce_bucket_size"` at the top level replaces that key of its section.

Status:
- **supported**: works as described.
- **accepted**: checked, but without effect. The table gives the reason, and rank 0 prints it at the start.
- **not available**: known, but not in this version. Any value except the default is an error. In a section that is switched off (`"enabled": false`, `"device": "none"`) it may have any value, because it has no effect there.
- **removed**: like "not available". DeepSpeed also removed the key in 2026.

`zeropage config FILE --world_size N` prints every effective value and its source. `zeropage config --from deepspeed FILE` compares the meaning of each key with DeepSpeed's.
)";

std::string cell(std::string text) {
  for (std::size_t at = 0; (at = text.find('|', at)) != std::string::npos; at += 2) text.insert(at, 1, '\\');
  return text;
}

std::string status_text(Status status) {
  switch (status) {
    case Status::kSupported: return "supported";
    case Status::kAccepted: return "accepted";
    case Status::kNotBuilt: return "not available";
    case Status::kRemoved: return "removed";
  }
  return "";
}

std::string meaning(const Key& key) {
  std::string text = key.doc;
  if (!key.differs.empty()) text += fmt::format(" Other than in DeepSpeed: {}.", key.differs);
  if (!key.other_default.empty()) text += fmt::format(" DeepSpeed's default: {}.", key.other_default);
  return text;
}

std::string row(const Key& key) {
  std::string names = fmt::format("`{}`", key.name);
  for (const std::string& alias : key.aliases) names += fmt::format(" (also `{}`)", alias);
  const std::string default_text = key.required ? "required"
                                   : key.type == Type::kSwitchedSection
                                       ? "absent"
                                       : fmt::format("`{}`", to_text(key.default_value));
  const std::string range = key.range();
  const char* automatic = !key.auto_is_planned ? "" : range.empty() ? "\"auto\"" : ", \"auto\"";
  return fmt::format("| {} | {} | {} | {} | {} | {} |\n", names, type_name(key.type), default_text,
                     cell(range + automatic), status_text(key.status), cell(meaning(key)));
}

std::string title(const Section& section) {
  if (section.path.empty()) return "Top level";
  std::string title = fmt::format("`{}`", section.path);
  if (!section.variants.empty()) title += fmt::format(" of {}", fmt::join(section.variants, " and "));
  if (!section.alias.empty()) title += fmt::format(" (also `{}`)", section.alias);
  return title;
}

}  // namespace

std::string reference_markdown() {
  std::string out = kOpening;
  for (const Section& section : sections()) {
    out += fmt::format("\n## {}\n{}{}\n", title(section), section.doc,
                       section.presence_not_built ? " **Not available**: the section must be absent." : "");
    if (section.keys.empty()) continue;
    out += "\n| key | type | default | range | status | meaning |\n| --- | --- | --- | --- | --- | --- |\n";
    for (const Key& key : section.keys) out += row(key);
  }
  return out;
}

}  // namespace zeropage::config
