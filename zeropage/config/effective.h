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

/// Parses, checks and resolves; what Config::from_json does, with the settings kept. Errors: as there.
Resolved resolve(const std::string& json_text, const std::string& origin, int world_size, const Planned& planned = {});

/// What follows after the check of each key.
Resolved resolve(Settings settings, int world_size);

/// Every key that applies as nested JSON in table order, two spaces of indentation, absent values as null. Reading it
/// again gives the same configuration and the same text.
std::string effective_json(const Settings& settings);

/// The listing of `zeropage config FILE [--world_size N]`: one line per key that applies, with its value and where it
/// came from (line of the file, default, derived); keys without effect are listed where the file sets them. world_size
/// 0: batch sizes stay open. Errors: as from_json.
std::string describe(const std::string& json_text, const std::string& origin, int world_size);

/// Lines about effective values that the document does not spell so: sizes rounded down, "auto" that nothing filled in,
/// keys with dots. To be shown once, by one rank. Errors: as from_json, but for rules between keys.
std::vector<std::string> notes(const std::string& json_text, const std::string& origin);

/// The same for a file. Errors: as from_file, but for rules between keys.
std::vector<std::string> notes_of_file(const std::string& path);

/// docs/config.md, generated from the tables.
std::string reference_markdown();

}  // namespace zeropage::config
