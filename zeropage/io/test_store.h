/// \file
/// For tests: a temporary folder, and a queue that injects faults.
#pragma once

#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "zeropage/base/error.h"
#include "zeropage/io/store.h"

namespace zeropage::io {

/// A directory that is removed by the destructor.
class TestFolder {
 public:
  explicit TestFolder(const std::string& parent = std::filesystem::temp_directory_path().string()) {
    path_ = parent + "/zp-io-XXXXXX";
    if (mkdtemp(path_.data()) == nullptr) throw IoError("mkdtemp");
  }
  ~TestFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  TestFolder(const TestFolder&) = delete;
  const std::string& path() const { return path_; }

  int entries() const {
    int count = 0;
    for ([[maybe_unused]] const auto& entry : std::filesystem::directory_iterator(path_)) ++count;
    return count;
  }

 private:
  std::string path_;
};

/// The fault of a request.
struct Fault {
  std::int64_t result = 0;   ///< negative: it fails so, and nothing moves
  std::int64_t at_most = 0;  ///< positive: it moves no more bytes than that
  bool lost = false;         ///< it never completes
};

using FaultHook = std::function<std::optional<Fault>(const Request&)>;

class FaultQueue : public Queue {
 public:
  FaultQueue(std::unique_ptr<Queue> real, FaultHook hook) : real_(std::move(real)), hook_(std::move(hook)) {}

  void exchange(std::span<const Request> requests, std::vector<Completion>& done, std::int64_t timeout_ms) override {
    std::vector<Request> passed;
    for (Request request : requests) {
      const std::optional<Fault> fault = hook_(request);
      if (fault && fault->lost) continue;
      if (fault && fault->at_most > 0) request.bytes = std::min(request.bytes, fault->at_most);
      if (fault && fault->result < 0) {
        done.push_back({request.tag, fault->result});
      } else {
        passed.push_back(request);
      }
    }
    real_->exchange(passed, done, done.empty() ? timeout_ms : 0);
  }

  std::string describe() const override { return real_->describe(); }

 private:
  std::unique_ptr<Queue> real_;
  FaultHook hook_;
};

inline QueueWrapper with_faults(FaultHook hook) {
  return [hook = std::move(hook)](std::unique_ptr<Queue> real) {
    return std::make_unique<FaultQueue>(std::move(real), hook);
  };
}

/// Bytes that differ between extents, versions and positions.
inline std::byte content(int extent, int version, std::int64_t position) {
  return static_cast<std::byte>(extent * 31 + version * 17 + position * 7 + position / 4096);
}

inline void fill(Store& store, int buffer, int extent, int version, std::int64_t bytes) {
  for (std::int64_t i = 0; i < bytes; ++i)
    store.buffer(buffer)[static_cast<std::size_t>(i)] = content(extent, version, i);
}

/// Writes a version of an extent and waits.
inline void write(Store& store, int extent, int version, std::int64_t bytes, int buffer = 0) {
  fill(store, buffer, extent, version, bytes);
  store.wait(store.write(extent, buffer));
}

/// Reads an extent into a buffer with other content. Returns whether it is this version.
inline bool holds(Store& store, int extent, int version, std::int64_t bytes, int buffer = 1) {
  std::fill(store.buffer(buffer).begin(), store.buffer(buffer).end(), std::byte{0xEE});
  store.wait(store.read(extent, buffer));
  for (std::int64_t i = 0; i < bytes; ++i) {
    if (store.buffer(buffer)[static_cast<std::size_t>(i)] != content(extent, version, i)) return false;
  }
  return true;
}

}  // namespace zeropage::io
