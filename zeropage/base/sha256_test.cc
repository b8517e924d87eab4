#include "zeropage/base/sha256.h"

#include <gtest/gtest.h>

namespace zeropage {
namespace {

// Catches a digest that is not the standard's, at every length around the end of a block: an empty key makes HMAC a
// known function of it.
TEST(Sha256, GivesThePublishedDigests) {
  EXPECT_EQ(hmac_sha256("key", "The quick brown fox jumps over the lazy dog"),
            "f7bc83f430538424b13298e6aa6fb143ef4d59a14946175997479dbc2d1a3cd8");
  EXPECT_EQ(hmac_sha256("", ""), "b613679a0814d9ec772f95d778c35fc5ff1697c493715653c6c712144292c5ad");
  EXPECT_EQ(hmac_sha256(std::string(131, '\xaa'), "Test Using Larger Than Block-Size Key - Hash Key First"),
            "60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54");
  const auto first_bytes = [](std::size_t length) {
    const auto digest = sha256(std::string(length, 'a'));
    return digest[0] << 8 | digest[1];
  };
  EXPECT_EQ(first_bytes(0), 0xe3b0);
  EXPECT_EQ(first_bytes(55), 0x9f43);
  EXPECT_EQ(first_bytes(56), 0xb354);
  EXPECT_EQ(first_bytes(64), 0xffe0);
  EXPECT_EQ(first_bytes(1'000'000), 0xcdc7);
}

}  // namespace
}  // namespace zeropage
