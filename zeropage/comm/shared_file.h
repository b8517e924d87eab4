/// \file
/// Files in memory that processes of one user and host map together.
#pragma once

#include <cstdint>
#include <string>

namespace zeropage::comm {

/// A file descriptor that is closed, and a name that is unlinked if it has one, with the object.
class SharedFile {
 public:
  SharedFile() = default;
  SharedFile(int fd, std::string path, bool unlink_at_end)
      : fd_(fd), path_(std::move(path)), unlink_at_end_(unlink_at_end) {}
  SharedFile(SharedFile&& other) noexcept;
  SharedFile& operator=(SharedFile&& other) noexcept;
  ~SharedFile();

  int fd() const { return fd_; }
  /// What a peer opens; readable by processes of the same user only.
  const std::string& path() const { return path_; }
  /// Leaves the name alone at the end (somebody else has removed it, or shall).
  void keep_name() { unlink_at_end_ = false; }
  /// Removes the name now; the memory lives on where it is mapped.
  void unlink();

 private:
  int fd_ = -1;
  std::string path_;
  bool unlink_at_end_ = false;
};

enum class Backing {
  kAnonymousFile,  ///< memfd: not limited by the size of /dev/shm, costs memory only where touched
  kNamedFile,      ///< in /dev/shm: for kernels or sandboxes that forbid the first; all its memory is reserved at once
};

/// Creates zero-filled shared memory of `bytes`. `name` (no slash) is used by kNamedFile only. Errors: IoError with
/// sizes and what to do.
SharedFile create_shared_file(Backing backing, const std::string& name, std::int64_t bytes);

/// Opens what a peer created. Errors: IoError when it is missing, belongs to another user, or has fewer bytes.
SharedFile open_shared_file(const std::string& path, std::int64_t bytes);

/// Reserves the memory of a new file, so that touching it later cannot fail. Errors: IoError with sizes and a hint.
void reserve_shared_file(int fd, const std::string& path, std::int64_t bytes);

}  // namespace zeropage::comm
