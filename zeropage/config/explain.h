/// \file
/// `zeropage config --from deepspeed FILE`: the effect in Zeropage of each key of a DeepSpeed configuration.
#pragma once

#include <string>
#include <vector>

namespace zeropage::config {

enum class Verdict {
  kSame,       ///< supported, with DeepSpeed's meaning
  kDifferent,  ///< supported, with a different meaning
  kNoEffect,   ///< accepted, and nothing acts upon it
  kRefused,    ///< an error when training starts
};

/// "supported: same meaning", "supported: different meaning", "without effect", "refused".
const char* verdict_name(Verdict verdict);

struct ExplainedKey {
  std::string path;
  int line = 0;       ///< 0: the file lacks a key that it needs
  std::string value;  ///< as JSON; empty: refused, and the text contains the found value
  Verdict verdict = Verdict::kSame;
  std::string text;  ///< why, or how it differs; of kSame mostly empty
};

/// A key that the file does not have, and whose default gives other results than DeepSpeed's.
struct OtherDefault {
  std::string path;
  std::string here;
  std::string deepspeed;
};

struct Explanation {
  std::vector<ExplainedKey> keys;  ///< in the order of the file's lines
  std::vector<OtherDefault> defaults;

  int count(Verdict verdict) const;
};

/// Explains all keys, also after a refused one. Rules between keys are checked only if no key is refused by itself.
/// world_size 0: batch sizes stay unknown. Errors: ConfigError when the text is no JSON object.
Explanation explain(const std::string& json_text, const std::string& origin, int world_size);

/// A table for a terminal, with reasons on separate lines, and a summary.
std::string explanation_text(const Explanation& explanation, const std::string& origin);

/// {"keys": [{"key", "line", "value", "verdict", "text"}], "defaults": [{"key", "here", "deepspeed"}]}
std::string explanation_json(const Explanation& explanation);

}  // namespace zeropage::config
