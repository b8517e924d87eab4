/// \file
/// The file operations of the checkpoint room, as an interface: tests use a file system that fails, stops or loses
/// power at a chosen operation. Every failure is an IoError that names the operation, the path and the system's reason.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace zeropage::checkpoint {

/// A new file that is being written from start to end.
class WritableFile {
 public:
  virtual ~WritableFile() = default;

  /// Appends all `bytes`, however many calls the system needs. Errors: IoError; for a full disk with the needed and the
  /// free bytes.
  virtual void append(const std::byte* data, std::int64_t bytes) = 0;

  /// Makes the appended bytes durable. After a failure the file must not be used or synced again; write a new one.
  virtual void sync() = 0;

  virtual void close() = 0;
};

/// A regular file that is read at any offset.
class ReadableFile {
 public:
  virtual ~ReadableFile() = default;
  virtual std::int64_t bytes() const = 0;

  /// Reads exactly [offset, offset + bytes). Errors: IoError, also when the file ends earlier (it shrank).
  virtual void read(std::int64_t offset, std::byte* out, std::int64_t bytes) const = 0;
};

/// A lock that is held until the object is destroyed. The system frees it when the process dies.
class DirectoryLock {
 public:
  virtual ~DirectoryLock() = default;
};

/// The same for a file with a fixed name. No other process can lock it while this object exists.
class FileLock {
 public:
  virtual ~FileLock() = default;

  /// Whether the folder of its path is on another file system than when it was locked: something was mounted there, or
  /// unmounted.
  virtual bool on_another_file_system() const { return false; }
};

class FileSystem {
 public:
  virtual ~FileSystem() = default;

  /// Creates a file that must not exist, and reserves space for `bytes` at once, so that a full disk is found before
  /// anything is written. Errors: IoError with the needed and the free bytes.
  virtual std::unique_ptr<WritableFile> create(const std::string& path, std::int64_t bytes) = 0;

  /// Opens a regular file; links, pipes and devices are refused.
  virtual std::unique_ptr<ReadableFile> open(const std::string& path) = 0;

  /// Creates a directory that must not exist.
  virtual void make_directory(const std::string& path) = 0;

  /// Creates a directory and its parents where they are missing.
  virtual void make_directories(const std::string& path) = 0;

  /// Makes the entries of a directory durable.
  virtual void sync_directory(const std::string& path) = 0;

  /// Renames; an existing file at `to` is replaced, an existing directory with content is an error.
  virtual void rename(const std::string& from, const std::string& to) = 0;

  /// Swaps two directories atomically. Errors: IoError where the file system cannot.
  virtual void exchange(const std::string& a, const std::string& b) = 0;

  virtual void remove_all(const std::string& path) = 0;
  virtual bool exists(const std::string& path) = 0;

  /// Names in a directory, sorted; empty when there is no such directory.
  virtual std::vector<std::string> list(const std::string& path) = 0;

  /// Locks a directory against other processes. Null when another process holds the lock or the directory does not
  /// exist.
  virtual std::unique_ptr<DirectoryLock> try_lock(const std::string& path) = 0;

  /// Locks a file against other processes. The file is made if it is missing, and the destructor removes it. `about` is
  /// written into it for other processes to read. Null when another process has the lock. If the file system has no
  /// locks, the object holds nothing, and a warning is written. Lock a path only once within a process. Errors:
  /// IoError.
  virtual std::unique_ptr<FileLock> try_lock_file(const std::string& path, const std::string& about) = 0;

  /// The absolute path without symbolic links: two names of one directory give the same text.
  virtual std::string full_path(const std::string& path) = 0;
};

/// The file system of the machine. Files and directories get modes according to the umask.
FileSystem& system_files();

/// The whole file as text. Errors: IoError, CheckpointError when it is larger than `max_bytes`.
std::string read_text(FileSystem& files, const std::string& path, std::int64_t max_bytes);

/// Writes and syncs a new file. The caller must sync the directory.
void write_text(FileSystem& files, const std::string& path, const std::string& text);

}  // namespace zeropage::checkpoint
