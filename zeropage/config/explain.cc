#include "zeropage/config/explain.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "zeropage/base/json_text.h"
#include "zeropage/base/text_table.h"
#include "zeropage/config/check.h"
#include "zeropage/config/effective.h"

namespace zeropage::config {
namespace {

constexpr std::size_t kShownValue = 40;

/// The section of a key, in the variant that the settings select.
const Section& section_of(const Settings& settings, const std::string& path) {
  const std::size_t dot = path.rfind('.');
  const std::string section = dot == std::string::npos ? "" : path.substr(0, dot);
  for (const Section& candidate : sections()) {
    if (candidate.path == section && candidate.find(path.substr(dot + 1)) == settings.at(path).key) return candidate;
  }
  throw std::logic_error("no section has the key " + path);
}

bool is_off(const Settings& settings, const Section& section) {
  if (section.switch_key.empty()) return false;
  const Setting& setting = settings.at(section.path_of(section.switch_key));
  return setting.value == setting.key->default_value;
}

/// For "optimizer.type": how the named type differs from DeepSpeed's.
std::string difference(const Setting& setting) {
  if (!setting.key->differs.empty()) return setting.key->differs;
  const auto* name = std::get_if<std::string>(&setting.value);
  if (name == nullptr) return "";
  for (const Section& section : sections()) {
    if (section.variant_of == setting.path && std::ranges::count(section.variants, *name) > 0) return section.differs;
  }
  return "";
}

ExplainedKey explained(const Settings& settings, const Setting& setting) {
  ExplainedKey key{setting.path, setting.line, to_text(setting.value), Verdict::kSame, ""};
  if (setting.key->type == Type::kSwitchedSection) key.value = "off";
  const Section& section = section_of(settings, setting.path);
  const bool is_switch = setting.key->name == section.switch_key;
  if (is_off(settings, section) && !is_switch) {
    if (setting.value == setting.key->default_value) return key;
    key.verdict = Verdict::kNoEffect;
    key.text = fmt::format("the section is off ({})", section.path_of(section.switch_key));
  } else if (setting.key->status == Status::kAccepted) {
    key.verdict = Verdict::kNoEffect;
    key.text = setting.key->doc;
  } else if (key.text = difference(setting); !key.text.empty() && !(is_switch && is_off(settings, section))) {
    key.verdict = Verdict::kDifferent;
  } else {
    key.text.clear();
  }
  if (setting.key->auto_is_planned && key.value == "\"auto\"") {
    key.text = "the training library fills it in; otherwise it is chosen when the engine is made";
  }
  return key;
}

/// Marks a key as refused because of a rule between several keys, each valid by itself. The file may not have this key.
void refuse(Explanation& explanation, const KeyError& error) {
  const auto found = std::ranges::find(explanation.keys, error.path, &ExplainedKey::path);
  if (found == explanation.keys.end()) {
    explanation.keys.push_back({error.path, error.line, "", Verdict::kRefused, error.problem});
  } else {
    found->verdict = Verdict::kRefused;
    found->text = error.problem;
  }
}

/// Whether the file does not have the key, and DeepSpeed's default is different.
bool is_compared(const Survey& found, const Setting& setting) {
  if (setting.source != Source::kDefault || setting.key->other_default.empty()) return false;
  const bool unfilled = std::ranges::count(found.unfilled, setting.path, &Remark::path) > 0;
  return !unfilled && !is_off(found.settings, section_of(found.settings, setting.path));
}

}  // namespace

const char* verdict_name(Verdict verdict) {
  switch (verdict) {
    case Verdict::kSame: return "supported: same meaning";
    case Verdict::kDifferent: return "supported: different meaning";
    case Verdict::kNoEffect: return "without effect";
    case Verdict::kRefused: break;
  }
  return "refused";
}

int Explanation::count(Verdict verdict) const {
  return static_cast<int>(std::ranges::count(keys, verdict, &ExplainedKey::verdict));
}

Explanation explain(const std::string& json_text, const std::string& origin, int world_size) {
  const Survey found = survey(json::parse(json_text, origin), origin);
  Explanation explanation;
  for (const Setting& setting : found.settings.all()) {
    if (setting.source == Source::kDocument) explanation.keys.push_back(explained(found.settings, setting));
    if (is_compared(found, setting)) {
      explanation.defaults.push_back({setting.path, to_text(setting.value), setting.key->other_default});
    }
  }
  bool complete = found.refused.empty();
  for (const Remark& remark : found.unfilled) {
    const bool required = found.settings.at(remark.path).key->required;
    complete = complete && !required;
    explanation.keys.push_back(
        {remark.path, remark.line, "\"auto\"", Verdict::kSame,
         "the training library fills it in; " +
             (required ? "otherwise it is an error" : fmt::format("otherwise the default, {}, is used", remark.text))});
  }
  for (const Remark& remark : found.refused) {
    explanation.keys.push_back({remark.path, remark.line, "", Verdict::kRefused, remark.text});
  }
  if (complete) {
    try {
      resolve(found.settings, world_size);
    } catch (const KeyError& error) {
      refuse(explanation, error);
    }
  }
  std::ranges::stable_sort(explanation.keys, {}, &ExplainedKey::line);
  return explanation;
}

std::string explanation_text(const Explanation& explanation, const std::string& origin) {
  std::vector<Cells> lines = {{"line", "key", "value", "here"}};
  for (const ExplainedKey& key : explanation.keys) {
    std::string value = key.value;
    if (value.size() > kShownValue) value = value.substr(0, kShownValue - 3) + "...";
    lines.push_back({key.line > 0 ? std::to_string(key.line) : "-", key.path, value, verdict_name(key.verdict)});
  }
  const std::string table = text_table(lines, 4);
  std::string out = fmt::format("{}, as DeepSpeed's configuration\n\n", origin);
  std::size_t begin = 0;
  for (std::size_t row = 0; row < lines.size(); ++row) {
    const std::size_t end = table.find('\n', begin) + 1;
    out += table.substr(begin, end - begin);
    begin = end;
    if (row > 0 && !explanation.keys[row - 1].text.empty()) out += "      " + explanation.keys[row - 1].text + "\n";
  }
  if (!explanation.defaults.empty()) {
    lines = {{"absent key with another default", "here", "DeepSpeed"}};
    for (const OtherDefault& other : explanation.defaults) lines.push_back({other.path, other.here, other.deepspeed});
    out += "\n" + text_table(lines, 3);
  }
  return out + fmt::format(
                   "\n{} supported with the same meaning, {} supported with a different meaning, {} without effect, {} "
                   "refused\n",
                   explanation.count(Verdict::kSame), explanation.count(Verdict::kDifferent),
                   explanation.count(Verdict::kNoEffect), explanation.count(Verdict::kRefused));
}

std::string explanation_json(const Explanation& explanation) {
  auto keys = nlohmann::ordered_json::array();
  for (const ExplainedKey& key : explanation.keys) {
    keys.push_back({{"key", key.path},
                    {"line", key.line},
                    {"value", key.value},
                    {"verdict", verdict_name(key.verdict)},
                    {"text", key.text}});
  }
  auto defaults = nlohmann::ordered_json::array();
  for (const OtherDefault& other : explanation.defaults) {
    defaults.push_back({{"key", other.path}, {"here", other.here}, {"deepspeed", other.deepspeed}});
  }
  return nlohmann::ordered_json{{"keys", std::move(keys)}, {"defaults", std::move(defaults)}}.dump(
             2, ' ', false, nlohmann::json::error_handler_t::replace) +
         "\n";
}

}  // namespace zeropage::config
