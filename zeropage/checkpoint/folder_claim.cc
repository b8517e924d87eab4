#include "zeropage/checkpoint/folder_claim.h"

#include <fmt/format.h>
#include <unistd.h>

#include <array>
#include <iterator>
#include <mutex>
#include <random>
#include <tuple>
#include <utility>

#include "zeropage/base/error.h"
#include "zeropage/base/json_text.h"

namespace zeropage::checkpoint {
namespace {

constexpr int kIdDigits = 32;
constexpr std::size_t kMaxClaimed = 16;
constexpr std::int64_t kMaxLockBytes = 4096;

/// The locks of this process with their numbers of users, because the system's locks do not distinguish users within
/// one process.
class Locks {
 public:
  /// Null when another process has it.
  std::shared_ptr<FileLock> take(FileSystem& files, const std::string& path, const std::string& about) {
    const std::lock_guard guard(mutex_);
    const Key key{&files, path, ::getpid()};
    auto held = held_.find(key);
    if (held == held_.end()) {
      auto lock = files.try_lock_file(path, about);
      if (!lock) return nullptr;
      held = held_.emplace(key, Held{std::move(lock), 0}).first;
    }
    ++held->second.users;
    return {held->second.lock.get(), [this, key](FileLock*) { give_back(key); }};
  }

 private:
  using Key = std::tuple<FileSystem*, std::string, pid_t>;  ///< a forked child has copies of its parent's entries
  struct Held {
    std::unique_ptr<FileLock> lock;
    int users = 0;
  };

  void give_back(const Key& key) {
    const std::lock_guard guard(mutex_);
    const auto held = held_.find(key);
    if (--held->second.users == 0) held_.erase(held);
  }

  std::mutex mutex_;
  std::map<Key, Held> held_;
};

std::string host_name() {
  std::array<char, 256> name{};
  return ::gethostname(name.data(), name.size() - 1) == 0 ? name.data() : "a host without a name";
}

/// The description that the other process wrote into the lock file.
std::string holder(FileSystem& files, const std::string& path) {
  try {
    return zeropage::json::printable(read_text(files, path, kMaxLockBytes));
  } catch (const Error&) {  // the other process has just ended
    return "another process";
  }
}

}  // namespace

std::string random_digits(int count) {
  std::random_device device;
  std::string digits;
  while (static_cast<int>(digits.size()) < count) digits += fmt::format("{:08x}", device());
  return digits.substr(0, static_cast<std::size_t>(count));
}

TrainingRun::TrainingRun() : id_(random_digits(kIdDigits)) {}

void TrainingRun::continue_as(const std::string& id) {
  if (!id.empty()) id_ = id;
}

void TrainingRun::claim(FileSystem& files, const std::string& folder) {
  static Locks& locks = *new Locks;  // never destroyed: engines may exist until the process ends
  const std::string path = fmt::format("{}/{}", files.full_path(folder), kLockName);
  if (const auto held = claimed_.find(path); held != claimed_.end()) {
    if (!held->second->on_another_file_system()) return;
    throw CheckpointError(fmt::format(
        "{} is on another file system than when this job first saved there: it was unmounted, or something was mounted "
        "over it. A checkpoint written now would not be in the folder of the others. Mount it again, or save into "
        "another "
        "folder",
        folder));
  }
  auto lock = locks.take(files, path, fmt::format("process {} on {}, run {}", ::getpid(), host_name(), id_));
  if (!lock) {
    throw CheckpointError(fmt::format(
        "{} belongs to a job that has not ended: {}. Two jobs in one folder would replace and remove each other's "
        "checkpoints. Save into another folder, or end that job; if its host is lost, remove {}",
        folder, holder(files, path), path));
  }
  claimed_.emplace(path, std::move(lock));
  // Some trainers save every checkpoint into a folder of its own, and each lock is an open file.
  if (claimed_.size() > kMaxClaimed)
    claimed_.erase(claimed_.begin()->first == path ? std::next(claimed_.begin()) : claimed_.begin());
}

}  // namespace zeropage::checkpoint
