/// \file
/// Converts one JSON value to one typed value.
#pragma once

#include "zeropage/base/json_text.h"
#include "zeropage/config/schema.h"

namespace zeropage::config {

/// A value, or the reason why the node is not one (`error` is not empty: "expected ..., got ...; hint").
struct Converted {
  Value value;
  std::string error = {};
  std::string note = {};  ///< how the value differs from the text of the document
};

/// Checks type, range and choices. Texts with choices are returned in the table's spelling.
Converted convert(const Key& key, const json::Node& node);

}  // namespace zeropage::config
