#include "zeropage/planner/safetensors.h"

#include <gtest/gtest.h>

#include <fstream>

#include <unistd.h>

#include "zeropage/base/error.h"

namespace zeropage::planner {
namespace {

namespace fs = std::filesystem;

class Safetensors : public testing::Test {
 protected:
  void SetUp() override {
    folder_ = fs::path(testing::TempDir()) / ("safetensors_" + std::to_string(::getpid()) + "_" +
                                              testing::UnitTest::GetInstance()->current_test_info()->name());
    fs::create_directories(folder_);
  }
  void TearDown() override { fs::remove_all(folder_); }

  fs::path write(const std::string& name, const std::string& bytes) {
    std::ofstream(folder_ / name, std::ios::binary) << bytes;
    return folder_ / name;
  }

  static std::string with_header(const std::string& header, std::size_t data_bytes, std::int64_t claimed_bytes = -1) {
    std::string bytes;
    const auto length = static_cast<std::uint64_t>(claimed_bytes < 0 ? header.size() : claimed_bytes);
    for (int i = 0; i < 8; ++i) bytes += static_cast<char>(length >> 8 * i);
    return bytes + header + std::string(data_bytes, '\0');
  }

  void expect_refused(const std::string& bytes, const std::string& words) {
    const fs::path path = write("bad.safetensors", bytes);
    try {
      read_safetensors(path);
      FAIL() << "accepted; expected: " << words;
    } catch (const ConfigError& error) {
      EXPECT_NE(std::string(error.what()).find(words), std::string::npos) << error.what();
    }
  }

  fs::path folder_;
};

TEST_F(Safetensors, CountsTheTensorsOfAFileAndOfAnIndex) {
  const fs::path one = write("one.safetensors", with_header(R"({"__metadata__": {"format": "pt"},
      "a": {"dtype": "BF16", "shape": [2, 3], "data_offsets": [0, 12]},
      "b": {"dtype": "F32", "shape": [], "data_offsets": [12, 16]}})",
                                                            16));
  EXPECT_EQ(read_safetensors(one).total_numel, 7);
  EXPECT_EQ(read_safetensors(one).largest_numel, 6);
  EXPECT_EQ(read_model(one.string()).total_numel, 7);
  write("two.safetensors", with_header(R"({"c": {"dtype": "F32", "shape": [5], "data_offsets": [0, 20]}})", 20));
  const fs::path index = write(
      "model.safetensors.index.json",
      R"({"metadata": {}, "weight_map": {"a": "one.safetensors", "b": "one.safetensors", "c": "two.safetensors"}})");
  EXPECT_EQ(read_safetensors_index(index).total_numel, 12);
  EXPECT_EQ(read_model(index.string()).total_numel, 12);
}

// Catches a malicious header that causes a large allocation, or that counts elements that do not exist.
TEST_F(Safetensors, HostileHeadersAreRefused) {
  expect_refused("", "a file of 0 bytes");
  expect_refused("1234567", "a file of 7 bytes");
  expect_refused(with_header("{}", 0, INT64_MAX), "expected a safetensors file");
  expect_refused(with_header("{}", 0, 3), "expected a safetensors file");
  expect_refused(with_header("{", 0), "syntax error at byte");
  expect_refused(with_header("[]", 0), "JSON object");
  expect_refused(with_header("{}", 0), "expected parameters, got none");
  expect_refused(with_header(std::string(100'000, '['), 0), "nested values");
  expect_refused(with_header(R"({"a": 1})", 0), "expected dtype, shape");
  expect_refused(with_header(R"({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
      "a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}})",
                             4),
                 "twice");
  const auto tensor = [&](const std::string& dtype, const std::string& shape, const std::string& offsets) {
    return with_header(
        "{\"a\": {\"dtype\": \"" + dtype + "\", \"shape\": " + shape + ", \"data_offsets\": " + offsets + "}}", 8);
  };
  expect_refused(tensor("X9", "[1]", "[0, 4]"), "unknown dtype \"X9\"");
  expect_refused(tensor("F32", "[-1]", "[0, 4]"), "integers from 0");
  expect_refused(tensor("F32", "[1.5]", "[0, 4]"), "integers from 0");
  expect_refused(tensor("F32", "[9223372036854775807, 9]", "[0, 4]"), "shape of tensor");
  expect_refused(tensor("F32", "[2]", "[0, 4]"), "do not take the 4 bytes");
  expect_refused(tensor("F32", "[3]", "[0, 12]"), "8 bytes of data");
  expect_refused(tensor("F32", "[1]", "[4, 0]"), "8 bytes of data");
  expect_refused(tensor("F32", "[1]", "[0, 18446744073709551615]"), "8 bytes of data");
}

TEST_F(Safetensors, AnIndexReachesOnlyFilesBesideIt) {
  const auto refused = [&](const std::string& text) {
    EXPECT_THROW(read_safetensors_index(write("x.safetensors.index.json", text)), ConfigError) << text;
  };
  refused("{}");
  refused(R"({"weight_map": {"a": "../secret"}})");
  refused(R"({"weight_map": {"a": "/etc/passwd"}})");
  refused(R"({"weight_map": {"a": ".."}})");
  refused(R"({"weight_map": {"a": 7}})");
  write("one.safetensors", with_header(R"({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}})", 4));
  refused(R"({"weight_map": {"b": "one.safetensors"}})");
  EXPECT_THROW(
      read_safetensors_index(write("x.safetensors.index.json", R"({"weight_map": {"a": "none.safetensors"}})")),
      IoError);
  EXPECT_THROW(read_safetensors(folder_ / "none.safetensors"), IoError);
}

}  // namespace
}  // namespace zeropage::planner
