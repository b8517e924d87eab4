/// \file
/// SHA-256 (FIPS 180-4), with which a process proves that it has a secret. Checksums of data use xxHash, which is
/// faster.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>

namespace zeropage {

std::array<std::uint8_t, 32> sha256(std::string_view bytes);

/// HMAC (RFC 2104) of `message` under `key`, in hexadecimal.
std::string hmac_sha256(std::string_view key, std::string_view message);

}  // namespace zeropage
