#include "zeropage/planner/safetensors.h"

#include <fmt/format.h>

#include <map>
#include <nlohmann/json.hpp>
#include <string>

#include "zeropage/base/checked.h"
#include "zeropage/base/error.h"
#include "zeropage/base/json_text.h"
#include "zeropage/base/machine_json.h"
#include "zeropage/planner/files.h"

namespace zeropage::planner {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;

constexpr std::uintmax_t kLengthBytes = 8;
constexpr std::uintmax_t kHeaderBytesMax = 100'000'000;
constexpr int kDepthMax = 8;  // of a header: an object of objects with a list

[[noreturn]] void fail(const fs::path& path, const std::string& what) {
  throw ConfigError(fmt::format("{}: {}", path.string(), what));
}

/// An object without duplicate keys and deep nesting.
Json parse_object(const std::string& text, const fs::path& path) {
  Json parsed;
  try {
    parsed = json::parse_machine_json(text, kDepthMax);
  } catch (const json::SyntaxError& error) {
    fail(path, error.what());
  }
  if (!parsed.is_object()) fail(path, "expected a JSON object of tensors");
  return parsed;
}

std::int64_t element_bits(const std::string& dtype) {
  static const std::map<std::string, std::int64_t> bits{
      {"F64", 64},    {"F32", 32}, {"F16", 16}, {"BF16", 16}, {"F8_E4M3", 8}, {"F8_E5M2", 8},
      {"F8_E8M0", 8}, {"I64", 64}, {"I32", 32}, {"I16", 16},  {"I8", 8},      {"U64", 64},
      {"U32", 32},    {"U16", 16}, {"U8", 8},   {"BOOL", 8},  {"C64", 64}};
  const auto found = bits.find(dtype);
  return found == bits.end() ? 0 : found->second;
}

/// A number that is not negative, or -1.
std::int64_t count_of(const Json& value) {
  return value.is_number_unsigned() && value.get<std::uint64_t>() <= INT64_MAX ? value.get<std::int64_t>() : -1;
}

struct Entry {
  std::int64_t numel = 0;
  std::int64_t dimensions = 0;
};

/// Elements of one entry, checked against `data_bytes`, the number of bytes after the header.
Entry entry_of(const fs::path& path, const std::string& name, const Json& tensor, std::int64_t data_bytes) {
  const auto bad = [&](const std::string& what) { fail(path, fmt::format("tensor {}: {}", json::quote(name), what)); };
  if (!tensor.is_object() || !tensor.contains("dtype") || !tensor["dtype"].is_string() || !tensor.contains("shape") ||
      !tensor["shape"].is_array() || !tensor.contains("data_offsets") || !tensor["data_offsets"].is_array() ||
      tensor["data_offsets"].size() != 2) {
    bad("expected dtype, shape and two data_offsets");
  }
  const auto dtype = tensor["dtype"].get<std::string>();
  const std::int64_t bits = element_bits(dtype);
  if (bits == 0) bad("unknown dtype " + json::quote(dtype));
  std::int64_t numel = 1;
  for (const Json& size : tensor["shape"]) {
    if (count_of(size) < 0) bad("expected a shape of integers from 0");
    numel = checked_mul(numel, count_of(size), "shape of tensor " + json::quote(name) + " in " + path.string());
  }
  const std::int64_t begin = count_of(tensor["data_offsets"][0]);
  const std::int64_t end = count_of(tensor["data_offsets"][1]);
  if (begin < 0 || end < begin || end > data_bytes) {
    bad(fmt::format("data_offsets are not within the {} bytes of data; is the file complete?", data_bytes));
  }
  if (checked_mul(numel, bits / 8, "tensor " + json::quote(name)) != end - begin) {
    bad(fmt::format("{} elements of {} do not take the {} bytes between the data_offsets", numel, dtype, end - begin));
  }
  return {numel, static_cast<std::int64_t>(tensor["shape"].size())};
}

/// By the name of the tensor.
std::map<std::string, Entry> read_header(const fs::path& path) {
  const std::string start = read_start(path, kLengthBytes);
  const std::uintmax_t file_bytes = fs::file_size(path);
  std::uintmax_t header_bytes = 0;
  for (std::size_t i = start.size(); i-- > 0;) header_bytes = header_bytes << 8 | static_cast<unsigned char>(start[i]);
  if (start.size() < kLengthBytes || header_bytes > kHeaderBytesMax || header_bytes > file_bytes - kLengthBytes) {
    fail(
        path,
        fmt::format(
            "expected a safetensors file: 8 bytes with the length of a header of at most {} bytes, and the header; got "
            "a file of {} bytes that says {}",
            kHeaderBytesMax, file_bytes, header_bytes));
  }
  const Json header = parse_object(read_start(path, kLengthBytes + header_bytes).substr(kLengthBytes), path);
  const auto data_bytes = static_cast<std::int64_t>(file_bytes - kLengthBytes - header_bytes);
  std::map<std::string, Entry> entries;
  for (const auto& [name, tensor] : header.items()) {
    if (name != "__metadata__") entries[name] = entry_of(path, name, tensor, data_bytes);
  }
  return entries;
}

Model model_of(const fs::path& path, const std::map<std::string, Entry>& entries) {
  std::vector<std::int64_t> numels;
  std::vector<bool> muon;
  for (const auto& [name, entry] : entries) {
    numels.push_back(entry.numel);
    muon.push_back(takes_muon(name, entry.dimensions));
  }
  return model_of_parameters(path.filename().string(), numels, std::vector<bool>(numels.size(), true), muon);
}

}  // namespace

Model read_safetensors(const fs::path& path) { return model_of(path, read_header(path)); }

Model read_safetensors_index(const fs::path& path) {
  const Json index = parse_object(read_file(path, kHeaderBytesMax), path);
  if (!index.contains("weight_map") || !index["weight_map"].is_object()) {
    fail(path, "expected an index with a \"weight_map\" from tensor names to files");
  }
  std::map<std::string, std::map<std::string, Entry>> files;
  std::map<std::string, Entry> entries;
  for (const auto& [name, file] : index["weight_map"].items()) {
    const std::string file_name = file.is_string() ? file.get<std::string>() : "";
    if (file_name.empty() || fs::path(file_name).filename() != file_name || file_name == "..") {
      fail(path,
           fmt::format("tensor {}: expected the name of a file in the folder of the index, got {}", json::quote(name),
                       json::printable(file.dump(-1, ' ', false, Json::error_handler_t::replace))));
    }
    if (!files.contains(file_name)) files[file_name] = read_header(path.parent_path() / file_name);
    const auto found = files[file_name].find(name);
    if (found == files[file_name].end()) {
      fail(path, fmt::format("tensor {} is not in {}, where the index looks for it", json::quote(name),
                             json::quote(file_name)));
    }
    entries[name] = found->second;
  }
  return model_of(path, entries);
}

}  // namespace zeropage::planner
