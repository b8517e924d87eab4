#include "zeropage/checkpoint/shard_file.h"

#include <gtest/gtest.h>
#include <sys/stat.h>

#include <cstring>
#include <fstream>

#include "zeropage/checkpoint/test_checkpoint.h"

namespace zeropage::checkpoint {
namespace {

/// A file system in which every path has the same content.
class FileInMemory : public FaultFiles {
 public:
  explicit FileInMemory(const std::string& content) : FaultFiles([](int) {}), content_(content) {}
  std::unique_ptr<ReadableFile> open(const std::string& path) override { return std::make_unique<Content>(content_); }

 private:
  struct Content : ReadableFile {
    explicit Content(const std::string& content) : text(content) {}
    std::int64_t bytes() const override { return static_cast<std::int64_t>(text.size()); }
    void read(std::int64_t offset, std::byte* out, std::int64_t bytes) const override {
      std::memcpy(out, text.data() + offset, static_cast<std::size_t>(bytes));
    }
    const std::string& text;
  };
  const std::string& content_;
};

std::string refusal(const std::string& header, std::int64_t data_bytes) {
  try {
    parse_shard_header(header, 8 + static_cast<std::int64_t>(header.size()) + data_bytes, "file");
  } catch (const CheckpointError& error) {
    return error.what();
  }
  return "";
}

// Catches extents that are accepted although they are out of bounds, overlap, have gaps, or do not fit their shape.
TEST(ShardHeader, HostileHeadersAreRefused) {
  EXPECT_EQ(refusal(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})", 8), "");
  const std::vector<std::string> hostile = {
      R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,9]}})",
      R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}})",
      R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[8,0]}})",
      R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[-8,0]}})",
      R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0]}})",
      R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})",
      R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"b":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})",
      R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"b":{"dtype":"F32","shape":[1],"data_offsets":[2,6]}})",
      R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}})",
      R"({"a":{"dtype":"F64","shape":[4611686018427387904,2],"data_offsets":[0,8]}})",
      R"({"a":{"dtype":"F64","shape":[2305843009213693952],"data_offsets":[0,0]}})",
      R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})",
      R"({"a":7})",
      R"([])",
      R"({"a")",
      R"({})",
      std::string(100000, '{'),
  };
  for (const auto& header : hostile) EXPECT_NE(refusal(header, 8), "") << header.substr(0, 120);
}

// Catches a byte of the file that no digest covers, and a length that is not checked.
TEST(ShardFile, EveryBitFlipAndEveryTruncationIsNoticed) {
  const TestFolder folder;
  const std::string path = folder.path() + "/shard";
  const auto request = request_for(folder.path(), "a", 0, 1, 1, /*rows=*/350);
  const auto record = write_shard(system_files(), path, request.tensors, kTestChunkBytes);
  std::ifstream in(path, std::ios::binary);
  const std::string bytes((std::istreambuf_iterator<char>(in)), {});
  ASSERT_EQ(static_cast<std::int64_t>(bytes.size()), record.bytes);
  ASSERT_GT(record.bytes, kTestChunkBytes);
  const auto verifies = [&](const std::string& content) {
    FileInMemory files(content);
    try {
      ShardReader(files, "damaged", record, kTestChunkBytes).verify();
      return true;
    } catch (const CheckpointError&) {
      return false;
    }
  };
  ASSERT_TRUE(verifies(bytes));
  for (std::size_t bit = 0; bit < bytes.size() * 8; ++bit) {
    std::string content = bytes;
    content[bit / 8] = static_cast<char>(content[bit / 8] ^ (1 << bit % 8));
    ASSERT_FALSE(verifies(content)) << "bit " << bit;
  }
  for (std::size_t size = 0; size < bytes.size(); ++size) ASSERT_FALSE(verifies(bytes.substr(0, size))) << size;
  EXPECT_FALSE(verifies(bytes + "x"));
}

// Catches a reader that follows links out of the folder, or hangs on a pipe.
TEST(ShardFile, OnlyRegularFilesAreOpened) {
  const TestFolder folder;
  std::filesystem::create_symlink("/etc/hostname", folder.path() + "/link");
  ASSERT_EQ(mkfifo((folder.path() + "/pipe").c_str(), 0600), 0);
  for (const auto* name : {"/link", "/pipe", "", "/none"}) {
    EXPECT_THROW(system_files().open(folder.path() + name), IoError) << name;
  }
}

}  // namespace
}  // namespace zeropage::checkpoint
