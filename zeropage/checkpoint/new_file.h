/// \file
/// New files of the machine's file system.
///
///   1. The system is asked for room for the whole file, so that a full disk is found before anything is written.
///   2. A small file goes through the page cache. The bytes of a large one are collected in a few aligned buffers; each
///      that is full is handed to the system for direct I/O, and the next is filled meanwhile. Copying into the page
///      cache would cost more processor time than all else that a save does, and would drive out what others keep
///      there.
///   3. What is left at the end, less than a buffer, goes through the page cache: direct I/O moves whole blocks.
///   4. sync() waits for all of it, and makes it durable. Where a file system has no direct I/O, all goes through the
///      page cache, and the disk is told early to start.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "zeropage/checkpoint/file_system.h"

namespace zeropage::checkpoint {

/// As FileSystem::create. Memory: 16 MiB for files of at least as much. One thread at a time uses the file.
std::unique_ptr<WritableFile> create_file(const std::string& path, std::int64_t bytes);

}  // namespace zeropage::checkpoint
