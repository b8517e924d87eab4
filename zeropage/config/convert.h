/// \file
/// One JSON value to one typed value.
#pragma once

#include "zeropage/base/json_text.h"
#include "zeropage/config/schema.h"

namespace zeropage::config {

/// A value, or why the node is none (`error` not empty: "expected ..., got ...; hint").
struct Converted {
  Value value;
  std::string error = {};
  std::string note = {};  ///< how the value differs from what the document spells
};

/// Checks type, range and choices. Texts with choices come back in the table's spelling.
Converted convert(const Key& key, const json::Node& node);

}  // namespace zeropage::config
