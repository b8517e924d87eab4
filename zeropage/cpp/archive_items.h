/// \file
/// Reads the archives that objects of torch::optim write, item by item. This is the only way to read state and
/// hyperparameters of classes that are not known here, such as a program's own.
#pragma once

#include <ATen/core/ivalue.h>
#include <torch/serialize/archive.h>

#include <sstream>
#include <string>
#include <utility>
#include <vector>

namespace zeropage::cpp {

using ArchiveItems = std::vector<std::pair<std::string, c10::IValue>>;

/// The option of Python's torch.optim that distinguishes AdamW from Adam. Objects of libtorch do not have it: their
/// class differs.
inline constexpr const char* kDecoupled = "decoupled_weight_decay";

/// Makes an archive for reading of a written one. Cost: a copy.
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
