/// \file
/// Where the lines of all ranks come together: the launcher's stdout and stderr.
///
/// 1. Lines of both streams wait in one queue and are written in order, so that no line is ever split by another.
/// 2. Nothing here blocks: the owner polls `wanted_fd()` for writing and calls `write_some()`. A reader that has
///    stopped makes the queue grow; at kMaxQueuedBytes the owner stops reading from the ranks, and they wait.
/// 3. On a terminal the unfinished line of rank 0 (a progress bar, a prompt) is kept visible below all others: erased
///    before a line, drawn again after it.
#pragma once

#include <cstddef>
#include <deque>
#include <string>
#include <string_view>

namespace zeropage::launch {

enum class Stream { kOut, kErr };

class Console {
 public:
  /// Writes to `out_fd` and `err_fd`, which stay the caller's.
  Console(int out_fd, int err_fd);

  /// Whether that stream is a terminal.
  bool is_terminal(Stream stream) const;

  /// Queues prefix + text + '\n'. `ends_live`: the unfinished line that is shown is, or comes before, this one's.
  void line(Stream stream, std::string_view prefix, std::string_view text, bool ends_live = false);

  /// Shows an unfinished line (empty: none). Nothing happens where the stream is no terminal.
  void live(Stream stream, std::string_view prefix, std::string_view text);

  /// The launcher's own line, on stderr: "zeropage: text".
  void notice(std::string_view text);

  /// The stream to poll for writing; -1 when all is written.
  int wanted_fd() const;

  bool is_full() const { return queued_bytes_ >= kMaxQueuedBytes; }

  /// Writes what certainly fits; call it when `wanted_fd()` is writable. False: the stream is gone (its reader has
  /// closed it, the disk is full) and whatever goes there is dropped from now on.
  bool write_some();

  static constexpr std::size_t kMaxQueuedBytes = 1 << 20;

 private:
  struct Chunk {
    Stream stream;
    std::string bytes;
  };
  struct Sink {
    int fd;
    bool terminal;
    bool gone = false;
  };
  Sink& sink(Stream stream) { return sinks_[stream == Stream::kErr]; }
  const Sink& sink(Stream stream) const { return sinks_[stream == Stream::kErr]; }
  void queue(Stream stream, std::string_view bytes);

  Sink sinks_[2];
  std::deque<Chunk> chunks_;
  std::size_t queued_bytes_ = 0;  ///< in chunks_, the written part of the first one included
  std::size_t front_written_bytes_ = 0;
  std::string live_;  ///< what the terminal shows as its unfinished last line
};

}  // namespace zeropage::launch
