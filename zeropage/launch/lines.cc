#include "zeropage/launch/lines.h"

#include <algorithm>

namespace zeropage::launch {
namespace {

constexpr std::size_t kMaxTailLines = 200;
constexpr std::size_t kMaxTailBytes = 256 * 1024;

/// The longest prefix of `text` within `limit` that does not split a UTF-8 character; `limit` bytes if there is none.
std::size_t whole_characters(std::string_view text, std::size_t limit) {
  std::size_t cut = limit;
  while (cut > limit - 4 && (static_cast<unsigned char>(text[cut]) & 0xC0) == 0x80) --cut;
  return cut;
}

}  // namespace

void LineSplitter::feed(std::string_view bytes, Time now, const OnLine& on_line) {
  while (!bytes.empty()) {
    const std::size_t end = std::min(bytes.find_first_of("\r\n"), bytes.size());
    if (end > 0) {
      if (returned_) overwrite(now, on_line);
      append(bytes.substr(0, end), on_line);
    }
    if (end == bytes.size()) return;
    if (bytes[end] == '\n') {
      on_line(line_);
      line_.clear();
    }
    returned_ = bytes[end] == '\r';
    bytes.remove_prefix(end + 1);
  }
}

void LineSplitter::finish(const OnLine& on_line) {
  if (!line_.empty()) on_line(line_);
  line_.clear();
  returned_ = false;
}

void LineSplitter::append(std::string_view text, const OnLine& on_line) {
  line_ += text;
  std::size_t given = 0;
  while (line_.size() - given > kMaxLineBytes) {
    const std::string_view rest = std::string_view(line_).substr(given);
    const std::size_t cut = whole_characters(rest, kMaxLineBytes);
    on_line(rest.substr(0, cut));
    given += cut;
  }
  line_.erase(0, given);
}

void LineSplitter::overwrite(Time now, const OnLine& on_line) {
  returned_ = false;
  if (log_progress_ && !line_.empty() && (!progress_time_ || now - *progress_time_ >= kProgressPeriod)) {
    progress_time_ = now;
    on_line(line_);
  }
  line_.clear();
}

void Tail::add(std::string_view line, Time now) {
  // Anywhere in the line, because loggers and torch write a prefix before it.
  const bool opens_traceback = line.find("Traceback (most recent call last)") != std::string_view::npos;
  lines_.push_back(Line{now, std::string(line), opens_traceback});
  bytes_ += line.size();
  while (lines_.size() > kMaxTailLines || (bytes_ > kMaxTailBytes && lines_.size() > 1)) {
    bytes_ -= lines_.front().text.size();
    lines_.pop_front();
  }
}

std::deque<Tail::Line>::const_iterator Tail::first_traceback() const {
  return std::find_if(lines_.begin(), lines_.end(), [](const Line& line) { return line.opens_traceback; });
}

std::optional<Time> Tail::traceback_time() const {
  const auto first = first_traceback();
  if (first == lines_.end()) return std::nullopt;
  return first->time;
}

std::string Tail::text() const {
  const auto traceback = first_traceback();
  std::string text;
  for (auto line = traceback == lines_.end() ? lines_.begin() : traceback; line != lines_.end(); ++line) {
    text += line->text;
    text += '\n';
  }
  return text;
}

}  // namespace zeropage::launch
