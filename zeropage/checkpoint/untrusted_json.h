/// \file
/// Reads JSON of checkpoints, which is not trusted: sizes are limited, and every access is checked. Errors are
/// CheckpointErrors that name the file and the key.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <vector>

namespace zeropage::checkpoint {

inline constexpr int kMaxJsonDepth = 64;

/// Parses one document. Errors: CheckpointError for bad syntax, bad UTF-8, a repeated key in an object, more than
/// kMaxJsonDepth levels.
nlohmann::json parse_untrusted(std::string_view text, const std::string& origin);

/// The integers of a list, each >= 0. `key`: where the list was found, for messages. Errors: CheckpointError.
std::vector<std::int64_t> natural_numbers(const nlohmann::json& list, const std::string& origin, const char* key);

/// A reader of one object whose keys are known.
class ObjectReader {
 public:
  /// `origin` names the file and the object in messages. Errors: CheckpointError when `value` is no object.
  ObjectReader(const nlohmann::json& value, std::string origin);

  bool has(const char* key) const;
  const nlohmann::json& at(const char* key) const;
  const nlohmann::json& array(const char* key) const;
  std::string string(const char* key) const;
  std::int64_t integer(const char* key, std::int64_t min, std::int64_t max = INT64_MAX) const;
  std::vector<std::int64_t> integers(const char* key) const;  ///< each >= 0
  bool boolean(const char* key) const;
  double number(const char* key) const;  ///< finite

  /// Errors: always a CheckpointError with the expected and the found value.
  [[noreturn]] void refuse(const char* key, const char* expected) const;

 private:
  const nlohmann::json& value_;
  std::string origin_;
};

}  // namespace zeropage::checkpoint
