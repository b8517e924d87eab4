/// \file
/// Fuzz targets for the code that reads untrusted bytes first: the manifest after its digest, and the header of a
/// shard. Any result except success or a CheckpointError is a defect. libFuzzer runs them (fuzz/, make fuzz), and the
/// tests run them with mutations of the same corpus.
#pragma once

#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>

#include "zeropage/base/digest.h"
#include "zeropage/base/error.h"
#include "zeropage/checkpoint/manifest.h"
#include "zeropage/checkpoint/shard_file.h"

namespace zeropage::checkpoint {

/// `body`: the bytes after the line of the digest. The target prepends the right digest, because the reader would
/// otherwise refuse every input at once.
inline bool accepts_manifest(std::string_view body) {
  try {
    const auto manifest = manifest_from_text("{\"digest\": \"" + digest128(body) + "\",\n" + std::string(body), "fuzz");
    // A manifest that was accepted must be the same after it was written and read.
    const auto again = manifest_from_text(manifest_to_text(manifest), "fuzz");
    if (!(again == manifest)) throw std::logic_error("a manifest differs after it was written and read");
    return true;
  } catch (const CheckpointError&) {
    return false;
  }
}

/// `input`: two bytes, the bytes of tensor data that the file is to have, and the header.
inline bool accepts_shard(std::string_view input) {
  if (input.size() < 2) return false;
  std::uint16_t data_bytes = 0;
  std::memcpy(&data_bytes, input.data(), sizeof(data_bytes));
  const auto header = input.substr(sizeof(data_bytes));
  const std::int64_t file_bytes = 8 + static_cast<std::int64_t>(header.size()) + data_bytes;
  try {
    for (const auto& [name, tensor] : parse_shard_header(header, file_bytes, "fuzz")) {
      if (tensor.begin < 8 || tensor.bytes < 0 || tensor.begin > file_bytes - tensor.bytes) {
        throw std::logic_error("tensor '" + name + "' lies outside of its file");
      }
    }
    return true;
  } catch (const CheckpointError&) {
    return false;
  }
}

}  // namespace zeropage::checkpoint
