#include "zeropage/base/machine_json.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "zeropage/base/json_text.h"

namespace zeropage::json {
namespace {

using Json = nlohmann::json;

/// Looks at every event of the parser and keeps the keys of the objects that are open.
class Checker : public nlohmann::json_sax<Json> {
 public:
  explicit Checker(int max_depth) : max_depth_(max_depth) {}

  bool null() override { return true; }
  bool boolean(bool value) override { return true; }
  bool number_integer(number_integer_t value) override { return true; }
  bool number_unsigned(number_unsigned_t value) override { return true; }
  bool number_float(number_float_t value, const string_t& text) override { return true; }
  bool string(string_t& value) override { return true; }
  bool binary(binary_t& value) override { return true; }

  bool start_object(std::size_t size) override { return open(); }
  bool key(string_t& name) override {
    levels_.back().push_back(std::move(name));
    return true;
  }
  bool end_object() override {
    // Sorted, not hashed: no input can make this slow.
    auto& keys = levels_.back();
    std::sort(keys.begin(), keys.end());
    const auto twice = std::adjacent_find(keys.begin(), keys.end());
    if (twice != keys.end()) {
      throw SyntaxError(fmt::format("expected each key once in an object, got {} twice", quote(*twice)));
    }
    return close();
  }
  bool start_array(std::size_t size) override { return open(); }
  bool end_array() override { return close(); }

  bool parse_error(std::size_t position, const std::string& token, const Json::exception& error) override {
    throw SyntaxError(fmt::format("expected JSON, got a syntax error at byte {}; is the file complete?", position));
  }

 private:
  bool open() {
    if (static_cast<int>(levels_.size()) >= max_depth_) {
      throw SyntaxError(fmt::format("expected at most {} nested values, got more", max_depth_));
    }
    levels_.emplace_back();
    return true;
  }
  bool close() {
    levels_.pop_back();
    return true;
  }

  int max_depth_;
  std::vector<std::vector<std::string>> levels_;
};

}  // namespace

Json parse_machine_json(std::string_view text, int max_depth) {
  Checker checker(max_depth);
  Json::sax_parse(text, &checker);
  return Json::parse(text);
}

Json parse_machine_cbor(std::string_view bytes, int max_depth) {
  Checker checker(max_depth);
  Json::sax_parse(bytes, &checker, Json::input_format_t::cbor);
  return Json::from_cbor(bytes);
}

}  // namespace zeropage::json
