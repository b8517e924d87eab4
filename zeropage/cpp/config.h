/// \file
/// The configuration of a program: the text of a ds_config.json (docs/config.md lists the keys).
#pragma once

#include <string>

namespace zeropage {

class Config {
 public:
  /// Reads a file and checks it. Errors: IoError, ConfigError with key, line, the expected value and the nearest known
  /// key.
  static Config from_file(const std::string& path);

  /// The same for JSON text; `origin` is its name in messages.
  static Config from_json(std::string text, std::string origin = "JSON text");

  /// This configuration with some keys replaced, given as JSON of the same form: {"zero_optimization": {"stage": 3}};
  /// null removes a key (RFC 7396). Errors: ConfigError.
  Config with(const std::string& changes) const;

  const std::string& text() const { return text_; }
  const std::string& origin() const { return origin_; }

 private:
  Config(std::string text, std::string origin);

  std::string text_;
  std::string origin_;
};

}  // namespace zeropage
