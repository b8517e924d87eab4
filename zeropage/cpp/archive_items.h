/// \file
/// What objects of torch::optim write into archives, name by name: the one way to read state and hyperparameters of a
/// class that is not known here, the program's own included.
#pragma once

#include <ATen/core/ivalue.h>
#include <torch/serialize/archive.h>

#include <sstream>
#include <string>
#include <utility>
#include <vector>

namespace zeropage::cpp {

using ArchiveItems = std::vector<std::pair<std::string, c10::IValue>>;

/// The option that tells AdamW from Adam, as Python's torch.optim calls it. Objects here have none: it is their class.
inline constexpr const char* kDecoupled = "decoupled_weight_decay";

/// What was written, to be read. Cost: a copy.
inline torch::serialize::InputArchive read_back(torch::serialize::OutputArchive& written) {
  std::stringstream bytes;
  written.save_to(bytes);
  torch::serialize::InputArchive archive;
  archive.load_from(bytes);
  return archive;
}

/// The items that `object.serialize(archive)` writes. Errors: c10::Error of a class that does not override it.
template <class Object>
ArchiveItems items_of(const Object& object) {
  torch::serialize::OutputArchive written;
  object.serialize(written);
  auto archive = read_back(written);
  ArchiveItems items;
  for (const std::string& key : archive.keys()) {
    c10::IValue value;
    archive.read(key, value);
    items.emplace_back(key, std::move(value));
  }
  return items;
}

/// An archive of such items, in the compilation unit of `outer`.
inline torch::serialize::OutputArchive archive_of(const ArchiveItems& items, torch::serialize::OutputArchive& outer) {
  torch::serialize::OutputArchive archive(outer.compilation_unit());
  for (const auto& [key, value] : items) archive.write(key, value);
  return archive;
}

}  // namespace zeropage::cpp
