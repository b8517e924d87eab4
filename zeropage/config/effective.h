/// \file
/// The effective configuration, for people (`zeropage config`), for hashing (effective JSON) and as documentation.
#pragma once

#include <string>
#include <vector>

#include "zeropage/config/config.h"
#include "zeropage/config/settings.h"

namespace zeropage::config {

/// A document with its settings resolved: cross-key rules checked, batch rule applied, derived values filled in.
struct Resolved {
  Settings settings;
  Config config;
};

/// Parses, checks and resolves, like Config::from_json, and also returns the settings. Errors: as Config::from_json.
Resolved resolve(const std::string& json_text, const std::string& origin, int world_size, const Planned& planned = {});

/// The steps after the check of each key.
Resolved resolve(Settings settings, int world_size);

/// Every key that applies as nested JSON in table order, two spaces of indentation, absent values as null. Reading it
/// again gives the same configuration and the same text.
std::string effective_json(const Settings& settings);

/// The listing of `zeropage config FILE [--world_size N]`: one line per key that applies, with its value and its source
/// (line of the file, default, derived). Keys without effect are listed if the file sets them. world_size 0: batch
/// sizes stay unknown. Errors: as from_json.
std::string describe(const std::string& json_text, const std::string& origin, int world_size);

/// Notes about effective values that differ from the text of the document: sizes rounded down, "auto" without a value,
/// keys with dots. One rank should show them once. Errors: as from_json, except for rules between keys.
std::vector<std::string> notes(const std::string& json_text, const std::string& origin);

/// The same for a file. Errors: as from_file, except for rules between keys.
std::vector<std::string> notes_of_file(const std::string& path);

/// docs/config.md, generated from the tables.
std::string reference_markdown();

}  // namespace zeropage::config
