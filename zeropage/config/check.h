/// \file
/// Checks a document against the tables.
///
/// 1. Each member of a section is a key of its table, an alias of one, or a section; anything else is an unknown key.
/// 2. null counts as absent, for keys and sections; so does "auto", with a note, where it is neither planned nor a
///    choice.
/// 3. A value has its key's type, range and choices.
/// 4. A key that is not built has its default, unless its section is switched off and cannot do anything.
/// 5. A key of a section at the top level, its path spelled with dots, goes before what the section says, with a note.
/// 6. Keys the document does not have get their default; required ones are an error.
/// 7. Notes name what the document says and nothing acts upon, and a default that is another one than DeepSpeed's.
#pragma once

#include "zeropage/base/json_text.h"
#include "zeropage/config/settings.h"

namespace zeropage::config {

/// All settings of a document, in table order: of sections with variants (optimizer.params) only the selected one.
/// Errors: ConfigError with origin, line, key path, what was expected, what came, and what to do.
/// planned: values for keys that are "auto" and planned; those it does not have keep the text "auto".
Settings check(const json::Node& document, const std::string& origin, const Planned& planned = {});

/// A key of the document that check would refuse, or of which it takes the default.
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

/// As check, but goes on after what it refuses. Errors: ConfigError when the document is no object.
Survey survey(const json::Node& document, const std::string& origin);

}  // namespace zeropage::config
