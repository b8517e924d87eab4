#include "zeropage/checkpoint/model_file.h"

#include <algorithm>
#include <cstring>

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "zeropage/checkpoint/diff.h"
#include "zeropage/checkpoint/memory_files.h"
#include "zeropage/checkpoint/test_checkpoint.h"
#include "zeropage/optim/convert.h"

namespace zeropage::checkpoint {
namespace {

LocalTensor local(TensorInfo info, std::vector<std::byte> bytes, std::int64_t numel) {
  return {std::move(info), 0, numel,
          [bytes = std::move(bytes)](std::int64_t begin, std::byte* out, std::int64_t count) {
            std::memcpy(out, bytes.data() + begin, static_cast<std::size_t>(count));
          }};
}

template <typename T>
LocalTensor local_values(TensorInfo info, const std::vector<T>& values) {
  std::vector<std::byte> bytes(values.size() * sizeof(T));
  std::memcpy(bytes.data(), values.data(), bytes.size());
  return local(std::move(info), std::move(bytes), static_cast<std::int64_t>(values.size()));
}

constexpr float kFine = 1.0f + 1.0f / 4096;  // not a bf16

/// A bf16 model: "turned" [3, 2], stored as its transpose, with a master; "frozen"; and a buffer of integers.
std::string save_model(const std::string& folder, const std::string& tag, float frozen) {
  SaveRequest request;
  request.folder = folder;
  request.manifest.tag = tag;
  request.manifest.parameters = {{"turned", {"tied"}, true, 1, {1, 0}}, {"frozen", {}, false, 0}};
  request.manifest.host_json = R"({"buffers":{"dict":[["seen",{"tensor":"host/0"}]]}})";
  const std::vector<float> master = {kFine, 2, 3, 4, 5, 6};
  std::vector<std::uint16_t> value;
  for (const float x : master) value.push_back(optim::bfloat16_from_float(x));
  request.tensors.push_back(local_values<std::uint16_t>({"value/turned", "BF16", {2, 3}}, value));
  request.tensors.push_back(local_values<float>({"master/turned", "F32", {2, 3}}, master));
  request.tensors.push_back(local_values<float>({"exp_avg/turned", "F32", {2, 3}}, master));
  request.tensors.push_back(
      local_values<std::uint16_t>({"value/frozen", "BF16", {1}}, {optim::bfloat16_from_float(frozen)}));
  request.tensors.push_back(local_values<std::int64_t>({"host/0", "I64", {2}}, {7, 8}));
  auto communicators = comm::make_thread_communicators(1, std::chrono::seconds(5));
  return save(system_files(), *communicators[0], std::move(request));
}

/// The tensors of an exported file, by name: their types, shapes and bytes.
struct ExportedFile {
  explicit ExportedFile(const std::string& path) {
    const auto file = system_files().open(path);
    content.resize(static_cast<std::size_t>(file->bytes()));
    file->read(0, reinterpret_cast<std::byte*>(content.data()), file->bytes());
    std::uint64_t length = 0;
    std::memcpy(&length, content.data(), 8);
    tensors = parse_shard_header(std::string_view(content).substr(8, length), file->bytes(), path);
  }
  template <typename T>
  std::vector<T> values(const std::string& name) const {
    const auto& tensor = tensors.at(name);
    std::vector<T> out(static_cast<std::size_t>(tensor.bytes) / sizeof(T));
    std::memcpy(out.data(), content.data() + tensor.begin, static_cast<std::size_t>(tensor.bytes));
    return out;
  }
  std::string content;
  std::map<std::string, StoredTensor> tensors;
};

// Catches values that are rounded, transposed, or taken from optimizer state, and missing buffers.
TEST(Export, WritesTheModelInItsShapesFromTheMostPreciseValues) {
  const TestFolder folder;
  Checkpoint step(system_files(), save_model(folder.path(), "a", 0.5f));
  const auto files = export_model(system_files(), step, {folder.path() + "/out"});
  ASSERT_EQ(files, std::vector<std::string>{folder.path() + "/out/model.safetensors"});
  const ExportedFile file(files[0]);
  EXPECT_EQ(file.tensors.size(), 3u);
  EXPECT_EQ(file.tensors.at("turned").info.shape, (std::vector<std::int64_t>{3, 2}));
  EXPECT_EQ(file.values<float>("turned"), (std::vector<float>{kFine, 4, 2, 5, 3, 6}));
  EXPECT_EQ(file.values<float>("frozen"), std::vector<float>{0.5f});
  EXPECT_EQ(file.values<std::int64_t>("seen"), (std::vector<std::int64_t>{7, 8}));
}

// Catches a second rounding, types that are not converted, a split that loses tensors, and files that are replaced.
TEST(Export, ConvertsSplitsAndReplacesNothing) {
  const TestFolder folder;
  Checkpoint step(system_files(), save_model(folder.path(), "a", 0.5f));
  const ExportOptions options{folder.path() + "/out", "F16", /*max_file_bytes=*/12, /*exclude_frozen=*/true};
  const auto files = export_model(system_files(), step, options);
  ASSERT_EQ(files.size(), 3u);
  const ExportedFile file(files[0]);
  EXPECT_EQ(file.values<std::uint16_t>("turned")[0], optim::float16_from_float(kFine));
  const auto index = nlohmann::json::parse(read_text(system_files(), files[2], 1 << 20));
  EXPECT_EQ(index["weight_map"]["seen"], "model-00002-of-00002.safetensors");
  EXPECT_EQ(index["weight_map"].size(), 2u);
  EXPECT_EQ(index["metadata"]["total_size"], 12 + 16);
  EXPECT_THROW(export_model(system_files(), step, options), IoError);
}

// Catches an incomplete export that looks complete: each operation fails once.
TEST(Export, AFailureLeavesNoFile) {
  const TestFolder folder;
  Checkpoint step(system_files(), save_model(folder.path(), "a", 0.5f));
  int failures = 0;
  for (bool failed = true; failed; ++failures) {
    failed = false;
    FaultFiles files([&](int op) {
      if (op != failures) return;
      failed = true;
      throw IoError("No space left on device");
    });
    const std::string out = folder.path() + "/out" + std::to_string(failures);
    try {
      export_model(files, step, {out, "F32", /*max_file_bytes=*/12});
    } catch (const IoError&) {
      EXPECT_TRUE(system_files().list(out).empty()) << "operation " << failures;
    }
  }
  EXPECT_GT(failures, 8);
}

// Catches a missed difference, and a reported one that does not exist.
TEST(Diff, FindsWhatDiffersAndNothingElse) {
  const TestFolder folder;
  Checkpoint a(system_files(), save_model(folder.path(), "a", 0.5f));
  Checkpoint b(system_files(), save_model(folder.path(), "b", 0.75f));
  Checkpoint again(system_files(), save_model(folder.path(), "c", 0.5f));
  EXPECT_TRUE(differences(a, again).empty());
  EXPECT_EQ(differences(a, b),
            std::vector<std::string>{"value/frozen: 1 of 1 elements differ, by up to 0.25, first element 0"});
  Checkpoint other(system_files(), save_alone(system_files(), folder.path(), "d", 1));
  const auto lines = differences(a, other);
  EXPECT_EQ(lines.front(), "global_steps: 0 | 1");
  EXPECT_NE(std::find(lines.begin(), lines.end(), "value/bias: only in " + other.path()), lines.end());
}

/// The names that a loader would see.
std::vector<std::string> visible(FileSystem& files, const std::string& folder) {
  std::vector<std::string> names;
  for (const auto& name : files.list(folder)) {
    if (!name.starts_with('.')) names.push_back(name);
  }
  return names;
}

// Catches an export that looks complete before it is: after a kill at any operation there must be no file that a loader
// would use, or only complete files, with the index last; and the next export into the same folder must work and remove
// the remains.
TEST(Export, KilledAtAnyOperationItLeavesNothingThatLoads) {
  for (const std::int64_t max_file_bytes : {std::int64_t{1} << 30, std::int64_t{1}}) {
    const TestFolder source;
    Checkpoint step(system_files(), save_model(source.path(), "a", 1.5f));
    ExportOptions options;
    options.folder = "/out";
    options.max_file_bytes = max_file_bytes;
    std::vector<MemoryFiles> left;
    MemoryFiles files([&](const MemoryFiles& now) { left.push_back(now); });
    export_model(files, step, options);
    ASSERT_GE(left.size(), 8u);
    const auto complete = visible(files, "/out");
    for (std::size_t at = 0; at < left.size(); ++at) {
      auto& killed = left[at];
      const auto names = visible(killed, "/out");
      for (const auto& name : names) {
        EXPECT_EQ(killed.content("/out/" + name), files.content("/out/" + name)) << name << " at operation " << at;
      }
      const bool loads = std::count(names.begin(), names.end(), kModelIndexName) +
                             std::count(names.begin(), names.end(), "model.safetensors") >
                         0;
      EXPECT_TRUE(!loads || names == complete) << "at operation " << at;
      if (!names.empty()) continue;
      export_model(killed, step, options);
      EXPECT_EQ(killed.list("/out"), complete) << "at operation " << at;
    }
  }
}

}  // namespace
}  // namespace zeropage::checkpoint
