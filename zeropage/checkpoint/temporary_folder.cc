#include "zeropage/checkpoint/temporary_folder.h"

#include <fmt/format.h>

#include <algorithm>
#include <string_view>

#include "zeropage/base/error.h"
#include "zeropage/base/log.h"
#include "zeropage/checkpoint/folder_claim.h"
#include "zeropage/checkpoint/model_file.h"
#include "zeropage/checkpoint/save.h"

namespace zeropage::checkpoint {
namespace {

constexpr std::string_view kSuffix = ".tmp";
constexpr int kDigits = 16;
constexpr int kLockAttempts = 3;

/// ".<something>.<16 digits>.tmp"
bool is_temporary_name(std::string_view name) {
  constexpr std::size_t kEndBytes = 1 + kDigits + kSuffix.size();
  if (name.size() < 2 + kEndBytes || name.front() != '.' || !name.ends_with(kSuffix)) return false;
  const auto end = name.substr(name.size() - kEndBytes);
  return end.front() == '.' && end.substr(1, kDigits).find_first_not_of("0123456789abcdef") == std::string_view::npos;
}

bool is_our_file(std::string_view name) {
  const bool tensors = name.ends_with(".safetensors") && (name.starts_with("shard-") || name.starts_with("model"));
  return tensors || name == kManifestName || name == kLatestName || name == kModelIndexName;
}

}  // namespace

std::string temporary_path(const std::string& folder, const std::string& name) {
  return fmt::format("{}/.{}.{}{}", folder, name, random_digits(kDigits), kSuffix);
}

bool holds_only_our_files(FileSystem& files, const std::string& directory) {
  const auto names = files.list(directory);
  return std::all_of(names.begin(), names.end(), is_our_file);
}

void remove_leftovers(FileSystem& files, const std::string& folder) {
  for (const auto& name : files.list(folder)) {
    if (!is_temporary_name(name)) continue;
    const std::string path = fmt::format("{}/{}", folder, name);
    // The lock is taken first: a directory that can be locked is complete. A file cannot be locked as a directory.
    const auto lock = files.try_lock(path);
    if (lock && holds_only_our_files(files, path)) files.remove_all(path);
  }
}

TemporaryFolder::TemporaryFolder(FileSystem& files, const std::string& folder, const std::string& name)
    : files_(files) {
  // Another job may treat the directory as a leftover between the two calls. Then the lock is refused, and a new
  // directory is made. On a file system without locks it is always refused, and leftovers are not removed.
  for (int attempt = 0; attempt < kLockAttempts && !lock_; ++attempt) {
    if (path_.empty() || !files.exists(path_)) {
      path_ = temporary_path(folder, name);
      files.make_directory(path_);
    }
    lock_ = files.try_lock(path_);
  }
}

TemporaryFolder::~TemporaryFolder() {
  if (path_.empty()) return;
  try {
    files_.remove_all(path_);
  } catch (const Error& error) {
    log_warn(fmt::format("{} is not complete and was not removed; the next save or export there removes it: {}", path_,
                         error.what()));
  }
}

}  // namespace zeropage::checkpoint
