/// \file
/// Writes new files of the machine's file system.
///
///   1. Space for the whole file is reserved, so that a full disk is found before anything is written.
///   2. A small file is written through the page cache. The bytes of a large one are collected in a few aligned
///      buffers. Each full buffer is written with direct I/O while the next is filled. Copying into the page cache
///      would cost more processor time than the rest of a save, and would evict the pages of other programs.
///   3. The rest at the end, less than a buffer, is written through the page cache, because direct I/O writes whole
///      blocks.
///   4. sync() waits for all writes and makes them durable. If a file system has no direct I/O, everything is written
///      through the page cache, and the disk is asked early to start.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "zeropage/checkpoint/file_system.h"

namespace zeropage::checkpoint {

/// As FileSystem::create. Memory: 16 MiB for files of at least this size. One thread at a time may use the file.
std::unique_ptr<WritableFile> create_file(const std::string& path, std::int64_t bytes);

}  // namespace zeropage::checkpoint
