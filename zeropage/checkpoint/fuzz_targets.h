/// \file
/// What untrusted bytes reach first: the manifest behind its digest, and the header of a shard. Anything but acceptance
/// or a CheckpointError is a defect. Driven by libFuzzer (fuzz/, make fuzz), and by mutations of the same corpus in the
/// tests.
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

/// `body`: what follows the digest's line. The digest is made right, else nothing would come past it.
inline bool accepts_manifest(std::string_view body) {
  try {
    const auto manifest = manifest_from_text("{\"digest\": \"" + digest128(body) + "\",\n" + std::string(body), "fuzz");
    // What is accepted can be written, and reads as the same.
    const auto again = manifest_from_text(manifest_to_text(manifest), "fuzz");
    if (!(again == manifest)) throw std::logic_error("a manifest does not come back as it was");
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
