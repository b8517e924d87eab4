/// \file
/// Every key with its effective value and the source of the value: the result of checking a document against the
/// tables.
#pragma once

#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "zeropage/base/error.h"
#include "zeropage/config/config.h"
#include "zeropage/config/schema.h"

namespace zeropage::config {

enum class Source { kDefault, kDocument, kDerived };

struct Setting {
  std::string path;
  const Key* key = nullptr;
  Value value;
  Source source = Source::kDefault;
  int line = 0;  ///< kDocument
};

/// Whether the value is "auto" still, and will be chosen when the engine is made.
bool is_automatic(const Setting& setting);

/// The settings in table order. Reading a path that no table has, or with a type other than in its table, is a bug in
/// this room and throws std::logic_error / std::bad_variant_access.
class Settings {
 public:
  /// `origin`: name of the document, for messages.
  explicit Settings(std::string origin) : origin_(std::move(origin)) {}

  void add(Setting setting);

  bool flag(const std::string& path) const { return std::get<bool>(at(path).value); }
  std::int64_t integer(const std::string& path) const { return std::get<std::int64_t>(at(path).value); }
  double real(const std::string& path) const { return std::get<double>(at(path).value); }
  const std::string& string(const std::string& path) const { return std::get<std::string>(at(path).value); }
  const std::vector<double>& floats(const std::string& path) const {
    return std::get<std::vector<double>>(at(path).value);
  }
  const std::vector<std::string>& strings(const std::string& path) const {
    return std::get<std::vector<std::string>>(at(path).value);
  }

  /// The value, or nullopt when there is none.
  template <typename T>
  std::optional<T> optional(const std::string& path) const {
    const Value& value = at(path).value;
    if (std::holds_alternative<std::monostate>(value)) return std::nullopt;
    return std::get<T>(value);
  }

  /// Sets a value that is computed from other keys.
  void derive(const std::string& path, Value value);

  const Setting& at(const std::string& path) const;
  const std::vector<Setting>& all() const { return settings_; }
  const std::string& origin() const { return origin_; }

  /// Notes about effective values that differ from the text of the document.
  std::vector<std::string> notes;

  /// Throws KeyError "origin:line: path: what"; without the line when the document does not set the key.
  [[noreturn]] void fail(const std::string& path, const std::string& what) const;

 private:
  std::string origin_;
  std::vector<Setting> settings_;
  std::unordered_map<std::string, std::size_t> index_;
};

/// The error of one key.
class KeyError : public ConfigError {
 public:
  KeyError(const std::string& message, int line, std::string path, std::string what)
      : ConfigError(message), line(line), path(std::move(path)), problem(std::move(what)) {}

  int line;  ///< 0: the document does not have the key
  std::string path;
  std::string problem;
};

/// Throws KeyError "origin:line: path: what"; line 0 and an empty path are left out.
[[noreturn]] void fail_at(const std::string& origin, int line, const std::string& path, const std::string& what);

}  // namespace zeropage::config
