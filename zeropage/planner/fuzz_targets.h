/// \file
/// Fuzz target: what `zeropage plan` reads of a safetensors file. Any result except success, a ConfigError or an
/// IoError is a defect. libFuzzer runs it (fuzz/, make fuzz), and the tests run it with mutations of the same corpus.
#pragma once

#include <fmt/format.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <stdexcept>
#include <string_view>

#include "zeropage/base/descriptor.h"
#include "zeropage/base/error.h"
#include "zeropage/planner/safetensors.h"

namespace zeropage::planner {

/// `input`: the header, a zero byte, and the data. The target prepends the right length of the header, because the
/// reader would otherwise refuse almost every input at once.
inline bool accepts_safetensors(std::string_view input) {
  static const Descriptor file(::memfd_create("fuzz", MFD_CLOEXEC));
  const std::size_t end = std::min(input.find('\0'), input.size());
  std::string bytes(8, '\0');
  for (int i = 0; i < 8; ++i) bytes[i] = static_cast<char>(std::uint64_t{end} >> (8 * i));
  bytes.append(input.substr(0, end)).append(input.substr(std::min(end + 1, input.size())));
  if (::ftruncate(file.get(), 0) != 0 || ::pwrite(file.get(), bytes.data(), bytes.size(), 0) < 0) {
    throw std::runtime_error("no memory for the input");
  }
  try {
    read_safetensors(fmt::format("/proc/self/fd/{}", file.get()));
    return true;
  } catch (const ConfigError&) {
    return false;
  } catch (const IoError&) {
    return false;
  }
}

}  // namespace zeropage::planner
