#include "zeropage/cpp/config.h"

#include <nlohmann/json.hpp>
#include <utility>

#include "zeropage/base/error.h"
#include "zeropage/base/json_text.h"
#include "zeropage/base/read_file.h"
#include "zeropage/config/config.h"

namespace zeropage {

Config::Config(std::string text, std::string origin) : text_(std::move(text)), origin_(std::move(origin)) {
  config::Config::from_json(text_, /*world_size=*/0, origin_);  // errors are found here, not when the ranks connect
}

Config Config::from_file(const std::string& path) {
  return Config(read_file(path, "the configuration", "check its path", json::kMaxDocumentBytes), path);
}

Config Config::from_json(std::string text, std::string origin) { return Config(std::move(text), std::move(origin)); }

Config Config::with(const std::string& changes) const {
  const auto parse = [](const std::string& text) {
    return nlohmann::ordered_json::parse(text, nullptr, /*allow_exceptions=*/false, /*ignore_comments=*/true);
  };
  const auto patch = parse(changes);
  if (!patch.is_object()) throw ConfigError("the changes of " + origin_ + " are no JSON object: " + changes);
  auto merged = parse(text_);
  merged.merge_patch(patch);
  return Config(merged.dump(2), origin_ + " with changes");
}

}  // namespace zeropage
