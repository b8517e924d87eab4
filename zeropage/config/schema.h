/// \file
/// The keys of `ds_config.json`. A key is one row: name, type, default, range, status and one line of documentation. A
/// section is a list of rows. The rows are in `tables_*.cc`. Checking (check.h), the typed Config (config.cc), the
/// printed configuration (effective.h) and docs/config.md all use them. So a new key needs a row and, if it is
/// supported, a line in config.cc that reads it.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <optional>
#include <string>
#include <variant>
#include <vector>

namespace zeropage::config {

/// An effective value; monostate means none (JSON null).
using Value = std::variant<std::monostate, bool, std::int64_t, double, std::string, std::vector<double>,
                           std::vector<std::string>>;

/// The value as JSON: `true`, `5`, `0.1`, `"text"`, `[1, 2]` or `null`.
std::string to_text(const Value& value);

enum class Type { kBool, kInteger, kFloat, kString, kFloats, kStrings, kSwitchedSection };

/// "bool", "integer", "number", "text", "numbers", "strings", "section".
std::string type_name(Type type);

enum class Status {
  kSupported,  ///< works as documented
  kAccepted,   ///< checked, then without effect, for the reason its documentation gives
  kNotBuilt,   ///< known; any value but the default is an error
  kRemoved,    ///< as kNotBuilt; DeepSpeed removed it in 2026
};

/// One allowed text; case is ignored. `also`: other spellings of it.
struct Choice {
  std::string name;
  Status status = Status::kSupported;  ///< kNotBuilt and kRemoved: an error
  std::vector<std::string> also = {};

  bool built() const { return status == Status::kSupported; }
};

struct Key {
  std::string name;
  Type type = Type::kBool;
  Value default_value;
  Status status = Status::kSupported;
  std::string doc;
  std::vector<std::string> aliases = {};
  std::vector<Choice> choices = {};
  std::optional<double> low = {};   ///< smallest allowed number
  std::optional<double> high = {};  ///< largest allowed number
  bool above_low = false;           ///< low itself is not allowed
  bool below_high = false;          ///< high itself is not allowed
  std::size_t length = 0;           ///< kFloats: how many; 0: any
  bool one_text = false;            ///< kStrings: a single text is a list of one
  bool required = false;
  bool auto_is_planned = false;     ///< "auto" is chosen when the engine is made, from the model and the machine
  bool infinity_is_absent = false;  ///< Infinity means that the key is absent
  bool rounds_down = false;         ///< kInteger: a fraction is rounded down, with a note
  std::string differs = {};         ///< how the meaning differs from DeepSpeed's
  std::string other_default = {};   ///< DeepSpeed's default, where it leads to other results

  Key& at_least(double value);
  Key& positive();
  Key& between(double smallest, double largest);
  Key& from_up_to(double smallest, double not_reached);
  Key& one_of(std::vector<Choice> allowed);
  Key& also_named(std::initializer_list<std::string> names);
  Key& or_one_string();
  Key& must_be_given();
  Key& or_auto();                             ///< sets auto_is_planned
  Key& or_fraction();                         ///< sets rounds_down
  Key& differing(std::string how);            ///< sets differs
  Key& deepspeed_default(std::string value);  ///< sets other_default

  /// Whether any value except the default is an error.
  bool refused() const { return status == Status::kNotBuilt || status == Status::kRemoved; }

  /// Whether "auto" is one of the choices of this key.
  bool has_auto_choice() const;

  /// Whether a number is in the range.
  bool in_range(double number) const;

  /// `>= 1`, `from 0 to 3`, `"log", "linear"`: the range or the choices that are available; empty: no limit.
  std::string range() const;

  /// "an integer >= 1", `one of "log", "linear"`: what a value must be, for messages.
  std::string expected() const;
};

Key flag(std::string name, bool default_value, Status status, std::string doc);
Key integer(std::string name, Value default_value, Status status, std::string doc);
Key real(std::string name, Value default_value, Status status, std::string doc);
Key string(std::string name, Value default_value, Status status, std::string doc);
Key floats(std::string name, std::vector<double> default_value, std::size_t length, Status status, std::string doc);
Key strings(std::string name, std::vector<std::string> default_value, Status status, std::string doc);

/// A section whose keys are not known: it may be empty or contain `"enabled": false`; anything else is refused.
Key switched_section(std::string name, Status status, std::string doc);

/// "not available in this version"; for kRemoved with "removed from DeepSpeed in 2026".
const char* refusal(Status status);

struct Section {
  std::string path;  ///< "zero_optimization.offload_param"; "" is the top level
  std::string doc;
  std::vector<Key> keys = {};
  std::string alias = {};                  ///< another name of the last part of the path
  std::string variant_of = {};             ///< full path of the key that selects this section ("optimizer.type") ...
  std::vector<std::string> variants = {};  ///< ... and the values for which it is the one
  std::string switch_key =
      {};  ///< while this key has its default the section is off, and keys that are not built may have any value
  bool presence_not_built = false;  ///< a section of something that is not built: its presence is an error
  std::string differs = {};         ///< for variants: how the selected type differs from DeepSpeed's

  /// Full path of a key of this section.
  std::string path_of(const std::string& name) const { return path.empty() ? name : path + "." + name; }
  const Key* find(const std::string& name_or_alias) const;
};

/// All sections in the order of documentation and effective JSON. Built once, then constant.
const std::vector<Section>& sections();

/// The section at `path`; if there are several variants, the one for `variant`. nullptr: no such section.
const Section* find_section(const std::string& path, const std::string& variant);

/// Whether there is a section at `path` or below it.
bool is_section_path(const std::string& path);

}  // namespace zeropage::config
