/// \file
/// What the checkpoint room asks of files, as a seam: tests put in a file system that fails, stops or loses power at a
/// chosen operation. Every failure is an IoError that names the operation, the path and the system's reason.
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

  /// Appends all `bytes`, however many calls the system needs. Errors: IoError; for a full disk it says how much was
  /// wanted and how much is free.
  virtual void append(const std::byte* data, std::int64_t bytes) = 0;

  /// Makes what was appended durable. After a failure the file is lost: write a new one, never sync again.
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

/// Held while its object lives, and freed by the system when the process dies.
class DirectoryLock {
 public:
  virtual ~DirectoryLock() = default;
};

/// The same for a file of a name that all processes know. No other process can lock it while this object lives.
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

  /// Creates a file that must not exist, and asks the system for room for `bytes` at once, so that a full disk is found
  /// before anything is written. Errors: IoError, which says how much is needed and how much is free.
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

  /// Swaps two directories in one instant. Errors: IoError where the file system cannot.
  virtual void exchange(const std::string& a, const std::string& b) = 0;

  virtual void remove_all(const std::string& path) = 0;
  virtual bool exists(const std::string& path) = 0;

  /// Names in a directory, sorted; empty when there is no such directory.
  virtual std::vector<std::string> list(const std::string& path) = 0;

  /// Locks a directory against other processes; null when somebody else holds it or it is gone.
  virtual std::unique_ptr<DirectoryLock> try_lock(const std::string& path) = 0;

  /// Locks a file, which is made where it is missing and removed with the object, against other processes, and writes
  /// `about` into it for them to read. Null when another process has it. Where the file system has no locks the object
  /// holds nothing, and a warning says so. Within one process lock a path once. Errors: IoError.
  virtual std::unique_ptr<FileLock> try_lock_file(const std::string& path, const std::string& about) = 0;

  /// The path from the root on, with links followed: two names of one directory are the same text.
  virtual std::string full_path(const std::string& path) = 0;
};

/// The file system of the machine. Files and directories get the modes that the umask leaves.
FileSystem& system_files();

/// The whole file as text. Errors: IoError, CheckpointError when it is larger than `max_bytes`.
std::string read_text(FileSystem& files, const std::string& path, std::int64_t max_bytes);

/// Writes and syncs a new file. The directory's entry is the caller's to sync.
void write_text(FileSystem& files, const std::string& path, const std::string& text);

}  // namespace zeropage::checkpoint
