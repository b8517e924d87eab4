/// \file
/// A reader for JSON that programs write: headers of tensor files, manifests. The text is not trusted. (json_text.h
/// reads JSON that people write.)
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string_view>

#include "zeropage/base/error.h"

namespace zeropage::json {

/// The text is not a valid document. The message does not contain the name of the file; the caller adds it.
class SyntaxError : public Error {
 public:
  using Error::Error;
};

/// Parses one document. Two passes: the first looks for bad syntax, bad UTF-8, repeated keys and nesting, and builds
/// nothing; the second builds the tree. (nlohmann's parser with a callback needs time that grows with the square of an
/// object's size.)
/// Cost: n log n in the text; memory: the tree, and the keys once. Errors: SyntaxError, also for a key that an object
/// has twice and for more than `max_depth` levels.
nlohmann::json parse_machine_json(std::string_view text, int max_depth);

/// The same for a document in CBOR (RFC 8949). Its strings may have bytes that are not UTF-8.
nlohmann::json parse_machine_cbor(std::string_view bytes, int max_depth);

}  // namespace zeropage::json
