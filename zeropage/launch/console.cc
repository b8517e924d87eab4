#include "zeropage/launch/console.h"

#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

namespace zeropage::launch {
namespace {

// A pipe that is writable according to poll accepts at least this many bytes, so such a write never blocks.
constexpr std::size_t kWriteBytes = 4096;
constexpr std::size_t kChunkBytes = 64 * 1024;
constexpr std::string_view kEraseLine = "\r\033[K";

}  // namespace

Console::Console(int out_fd, int err_fd)
    : sinks_{Sink{out_fd, ::isatty(out_fd) == 1}, Sink{err_fd, ::isatty(err_fd) == 1}} {}

bool Console::is_terminal(Stream stream) const { return sink(stream).terminal; }

void Console::line(Stream stream, std::string_view prefix, std::string_view text, bool ends_live) {
  std::string bytes;
  const bool shows_live = is_terminal(stream) && !live_.empty();
  if (shows_live) bytes += kEraseLine;
  bytes.append(prefix).append(text).append("\n");
  if (shows_live && ends_live) live_.clear();
  if (shows_live) bytes += live_;
  queue(stream, bytes);
}

void Console::live(Stream stream, std::string_view prefix, std::string_view text) {
  if (!is_terminal(stream)) return;
  std::string wanted = text.empty() ? std::string() : std::string(prefix).append(text);
  if (wanted == live_) return;
  live_ = std::move(wanted);
  queue(stream, std::string(kEraseLine) + live_);
}

void Console::notice(std::string_view text) { line(Stream::kErr, "zeropage: ", text); }

int Console::wanted_fd() const { return chunks_.empty() ? -1 : sink(chunks_.front().stream).fd; }

bool Console::write_some() {
  const Chunk& chunk = chunks_.front();
  const std::string_view rest = std::string_view(chunk.bytes).substr(front_written_bytes_, kWriteBytes);
  const ssize_t written = ::write(sink(chunk.stream).fd, rest.data(), rest.size());
  if (written < 0 && (errno == EINTR || errno == EAGAIN)) return true;
  front_written_bytes_ += static_cast<std::size_t>(std::max<ssize_t>(written, 0));
  if (written < 0) sink(chunk.stream).gone = true;
  if (written < 0 || front_written_bytes_ == chunk.bytes.size()) {
    queued_bytes_ -= chunk.bytes.size();
    front_written_bytes_ = 0;
    chunks_.pop_front();
  }
  return written >= 0;
}

void Console::queue(Stream stream, std::string_view bytes) {
  if (sink(stream).gone) return;
  queued_bytes_ += bytes.size();
  const bool joins = !chunks_.empty() && chunks_.back().stream == stream && chunks_.back().bytes.size() < kChunkBytes;
  if (!joins) chunks_.push_back(Chunk{stream, {}});
  chunks_.back().bytes += bytes;
}

}  // namespace zeropage::launch
