/// \file
/// xxh3 digests. They detect errors of disks and networks, but not attacks.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace zeropage {

/// XXH3, 64 bits. Cost: memory speed.
std::uint64_t hash64(const std::byte* data, std::int64_t bytes);
std::uint64_t hash64(std::string_view bytes);

/// The same as 16 lower-case hexadecimal digits. Cost: memory speed.
std::string digest64(const std::byte* data, std::int64_t bytes);

/// XXH3, 128 bits, as 32 digits.
std::string digest128(std::string_view text);

}  // namespace zeropage
