/// \file
/// The launcher's stdout and stderr, to which the lines of all ranks are written.
///
/// 1. Lines of both streams are put into one queue and written in order, so that no line is split by another.
/// 2. Nothing here blocks: the owner polls `wanted_fd()` for writing and calls `write_some()`. If the reader of the
///    output stops, the queue grows. At kMaxQueuedBytes the owner stops reading from the ranks, and they wait.
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
  /// Writes to `out_fd` and `err_fd`. The caller still owns them.
  Console(int out_fd, int err_fd);

  /// Whether that stream is a terminal.
  bool is_terminal(Stream stream) const;

  /// Queues prefix + text + '\n'. `ends_live`: this line completes or follows the unfinished line that is shown.
  void line(Stream stream, std::string_view prefix, std::string_view text, bool ends_live = false);

  /// Shows an unfinished line (empty: none). Does nothing if the stream is no terminal.
  void live(Stream stream, std::string_view prefix, std::string_view text);

  /// The launcher's own line, on stderr: "zeropage: text".
  void notice(std::string_view text);

  /// The stream to poll for writing; -1 when all is written.
  int wanted_fd() const;

  bool is_full() const { return queued_bytes_ >= kMaxQueuedBytes; }

  /// Writes as much as certainly does not block; call it when `wanted_fd()` is writable. False: the stream has failed
  /// (its reader has closed it, or the disk is full), and later output to it is dropped.
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
  std::size_t queued_bytes_ = 0;  ///< bytes in chunks_, including the written part of the first one
  std::size_t front_written_bytes_ = 0;
  std::string live_;  ///< the unfinished last line on the terminal
};

}  // namespace zeropage::launch
