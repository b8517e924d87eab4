/// \file
/// For tests: a temporary folder, a file system with faults, and checkpoints with known contents.
#pragma once

#include <unistd.h>

#include <chrono>
#include <cstring>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "zeropage/base/error.h"
#include "zeropage/checkpoint/file_system.h"
#include "zeropage/checkpoint/load.h"
#include "zeropage/checkpoint/save.h"
#include "zeropage/checkpoint/steps.h"
#include "zeropage/comm/thread_communicator.h"

namespace zeropage::checkpoint {

/// A directory that is removed by the destructor.
class TestFolder {
 public:
  explicit TestFolder(const std::filesystem::path& parent = std::filesystem::temp_directory_path()) {
    std::string name = (parent / "zp-ckpt-XXXXXX").string();
    if (mkdtemp(name.data()) == nullptr) throw IoError("mkdtemp");
    path_ = name;
  }
  ~TestFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  TestFolder(const TestFolder&) = delete;
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

/// Called before each operation that changes something, with its number from 0. If it throws, the operation fails with
/// this error.
using FaultHook = std::function<void(int op)>;

/// The real file system with a hook before every changing operation.
class FaultFiles : public FileSystem {
 public:
  explicit FaultFiles(FaultHook hook) : hook_(std::move(hook)) {}

  int operations() const { return next_; }

  std::unique_ptr<WritableFile> create(const std::string& path, std::int64_t bytes) override {
    step();
    return std::make_unique<File>(*this, real_.create(path, bytes));
  }
  std::unique_ptr<ReadableFile> open(const std::string& path) override { return real_.open(path); }
  void make_directory(const std::string& path) override { step(), real_.make_directory(path); }
  void make_directories(const std::string& path) override { step(), real_.make_directories(path); }
  void sync_directory(const std::string& path) override { step(), real_.sync_directory(path); }
  void rename(const std::string& from, const std::string& to) override { step(), real_.rename(from, to); }
  void exchange(const std::string& a, const std::string& b) override { step(), real_.exchange(a, b); }
  void remove_all(const std::string& path) override { step(), real_.remove_all(path); }
  bool exists(const std::string& path) override { return real_.exists(path); }
  std::vector<std::string> list(const std::string& path) override { return real_.list(path); }
  std::unique_ptr<DirectoryLock> try_lock(const std::string& path) override { return real_.try_lock(path); }
  std::unique_ptr<FileLock> try_lock_file(const std::string& path, const std::string& about) override {
    return real_.try_lock_file(path, about);
  }
  std::string full_path(const std::string& path) override { return real_.full_path(path); }

 private:
  class File : public WritableFile {
   public:
    File(FaultFiles& owner, std::unique_ptr<WritableFile> file) : owner_(owner), file_(std::move(file)) {}
    void append(const std::byte* data, std::int64_t bytes) override {
      owner_.step();
      file_->append(data, bytes);
    }
    void sync() override { owner_.step(), file_->sync(); }
    void close() override { owner_.step(), file_->close(); }

   private:
    FaultFiles& owner_;
    std::unique_ptr<WritableFile> file_;
  };

  void step() { hook_(next_++); }

  FileSystem& real_ = system_files();
  FaultHook hook_;
  int next_ = 0;
};

inline constexpr std::int64_t kTestChunkBytes = 4096;

/// Longer than any file operation of a test takes.
inline constexpr std::chrono::seconds kTestTimeout{10};

/// A rank's part of a checkpoint: "weight" [rows, 3] in F32, split over the ranks as evenly as possible, with the
/// elements `content`, content + 1, ...; "bias" [5] in BF16 on the last rank; and on each rank a tensor of its own.
inline SaveRequest request_for(const std::string& folder, const std::string& tag, int rank, int world, float content,
                               std::int64_t rows = 700) {
  SaveRequest request;
  request.folder = folder;
  request.run = std::make_shared<TrainingRun>();
  request.run->continue_as("the run of the tests");
  request.manifest.tag = tag;
  request.manifest.chunk_bytes = kTestChunkBytes;
  request.manifest.training.global_steps = static_cast<std::int64_t>(content);
  request.manifest.parameters = {{"weight", {}, true, 1}, {"bias", {}, false, 0}};
  const auto add = [&](TensorInfo info, std::int64_t offset, std::vector<std::byte> bytes, std::int64_t numel) {
    request.tensors.push_back({std::move(info), offset, numel,
                               [bytes = std::move(bytes)](std::int64_t begin, std::byte* out, std::int64_t count) {
                                 std::memcpy(out, bytes.data() + begin, static_cast<std::size_t>(count));
                               }});
  };
  const std::int64_t numel = rows * 3, begin = numel * rank / world, end = numel * (rank + 1) / world;
  std::vector<std::byte> values(static_cast<std::size_t>(4 * (end - begin)));
  for (std::int64_t i = begin; i < end; ++i) {
    const float value = content + static_cast<float>(i);
    std::memcpy(values.data() + 4 * (i - begin), &value, 4);
  }
  add({"value/weight", "F32", {rows, 3}}, begin, values, end - begin);
  if (rank == world - 1) add({"value/bias", "BF16", {5}}, 0, std::vector<std::byte>(10, std::byte{7}), 5);
  add({"random/" + std::to_string(rank), "U8", {rank + 1}}, 0, std::vector<std::byte>(rank + 1, std::byte{1}),
      rank + 1);
  return request;
}

/// Saves on one rank.
inline std::string save_alone(FileSystem& files, const std::string& folder, const std::string& tag, float content) {
  auto communicators = comm::make_thread_communicators(1, std::chrono::seconds(5));
  return save(files, *communicators[0], request_for(folder, tag, 0, 1, content));
}

/// Elements [begin, end) of the weight. Errors: as Checkpoint.
inline std::vector<float> weight_of(Checkpoint& step, std::int64_t begin, std::int64_t end) {
  std::vector<float> values(static_cast<std::size_t>(end - begin));
  step.read(*step.find("value/weight"), begin, end - begin, reinterpret_cast<std::byte*>(values.data()));
  return values;
}

/// Verifies the newest checkpoint of a folder and returns its first weight. -1: there is none.
inline float newest_content(const std::string& folder, FileSystem& files = system_files()) {
  const auto path = choose_step(files, folder, std::nullopt);
  if (!path) return -1;
  Checkpoint step(files, *path);
  step.verify();
  return weight_of(step, 0, 1)[0];
}

}  // namespace zeropage::checkpoint
