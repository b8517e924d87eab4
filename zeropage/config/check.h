/// \file
/// Checks a document against the tables.
///
/// 1. Each member of a section is a key of its table, an alias of one, or a section; anything else is an unknown key.
/// 2. null counts as absent, for keys and sections. "auto" counts as absent, with a note, if the key has neither a
///    planned value nor "auto" as a choice.
/// 3. A value has its key's type, range and choices.
/// 4. A key that is not built must have its default, unless its section is switched off.
/// 5. A key of a section at the top level, its path spelled with dots, has priority over the section, with a note.
/// 6. Keys that the document does not have get their default; missing required keys are an error.
/// 7. Notes name the values of the document that have no effect, and defaults that differ from DeepSpeed's.
#pragma once

#include "zeropage/base/json_text.h"
#include "zeropage/config/settings.h"

namespace zeropage::config {

/// All settings of a document, in table order; for sections with variants (optimizer.params) only the selected variant.
/// Errors: ConfigError with origin, line, key path, the expected and the found value, and what to do. planned: values
/// for keys that are "auto"; other such keys keep the text "auto".
Settings check(const json::Node& document, const std::string& origin, const Planned& planned = {});

/// A key of the document that `check` would refuse, or for which it uses the default.
struct Remark {
  int line = 0;
  std::string path;
  std::string text;
};

struct Survey {
  Settings settings;
  std::vector<Remark> refused = {};   ///< all of them, in the order of reading; their settings have the defaults
  std::vector<Remark> unfilled = {};  ///< "auto" that waits for whoever fills it in; text: the default
};

/// As check, but continues after errors. Errors: ConfigError when the document is no object.
Survey survey(const json::Node& document, const std::string& origin);

}  // namespace zeropage::config
