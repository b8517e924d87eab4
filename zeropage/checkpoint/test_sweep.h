/// \file
/// For tests: a save that is stopped before one of its system calls, and the checks afterwards.
#pragma once

#include <sys/syscall.h>

#include <fstream>
#include <map>
#include <string>

#include "zeropage/checkpoint/test_checkpoint.h"
#include "zeropage/checkpoint/traced_process.h"

namespace zeropage::checkpoint {

/// A folder in which a sync is fast, because a sweep makes thousands.
inline std::filesystem::path memory_folder() {
  return std::filesystem::is_directory("/dev/shm") ? "/dev/shm" : std::filesystem::temp_directory_path();
}

struct SweepCase {
  std::string tag;         ///< "old" is there already
  std::int64_t keep_last;  ///< 1: the old step is removed when the new one is committed
};

inline SaveRequest request_of(const SweepCase& scenario, const std::string& folder, int rank, int world) {
  auto request = request_for(folder, scenario.tag, rank, world, 2);
  request.keep_last = scenario.keep_last;
  return request;
}

/// Records that the save has returned on this rank.
inline void acknowledge(const std::string& folder, int rank) {
  std::ofstream(folder + ".saved" + std::to_string(rank)) << "yes";
}

inline bool acknowledged(const std::string& folder, int rank) {
  return std::filesystem::remove(folder + ".saved" + std::to_string(rank));
}

/// Checks that the old or the new checkpoint is complete, and the new one if the save has returned on any rank; and
/// that the next save works and removes all leftovers. Returns the problem, or an empty string.
inline std::string problem_after_crash(const std::string& folder, bool saved) {
  const float found = newest_content(folder);
  if (found != 2 && (found != 1 || saved)) return "found " + std::to_string(found);
  save_alone(system_files(), folder, "next", 3);
  if (newest_content(folder) != 3) return "the next save was not found";
  for (const auto& name : system_files().list(folder)) {
    if (name.front() == '.') return "a leftover stays: " + name;
  }
  return "";
}

inline const std::vector<SweepCase> kSweepCases = {{"new", 0}, {"old", 0}, {"new", 1}};

/// Whether a save works on files with this call. Calls with which ranks wait for each other are left out, because their
/// number varies.
inline bool concerns_files(long number) {
  switch (number) {
    case SYS_openat:
    case SYS_write:
    case SYS_pwrite64:
    case SYS_fsync:
    case SYS_fallocate:
    case SYS_sync_file_range:
    case SYS_close:
    case SYS_renameat2:
    case SYS_unlinkat:
    case SYS_flock:
#ifdef SYS_mkdir
    case SYS_mkdir:
    case SYS_rename:
#endif
      return true;
    default: return false;
  }
}

/// Counts by system call, as text.
inline std::string listing(const std::map<long, int>& counts) {
  const std::map<long, std::string> names = {
      {SYS_openat, "openat"},       {SYS_write, "write"},           {SYS_pwrite64, "pwrite64"},
      {SYS_fsync, "fsync"},         {SYS_fallocate, "fallocate"},   {SYS_close, "close"},
      {SYS_renameat2, "renameat2"}, {SYS_getdents64, "getdents64"}, {SYS_unlinkat, "unlinkat"},
      {SYS_flock, "flock"},         {SYS_newfstatat, "fstat"},
#ifdef SYS_mkdir
      {SYS_mkdir, "mkdir"},         {SYS_rename, "rename"},
#endif
  };
  std::string text;
  int others = 0;
  for (const auto& [number, count] : counts) {
    const auto name = names.find(number);
    if (name == names.end()) {
      others += count;
    } else {
      text += name->second + " " + std::to_string(count) + ", ";
    }
  }
  return text + "others " + std::to_string(others);
}

}  // namespace zeropage::checkpoint
