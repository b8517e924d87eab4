#include "zeropage/comm/shm/process_status.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <cstdlib>
#include <string>
#include <string_view>

namespace zeropage::comm {

std::optional<ProcessStatus> process_status(std::int64_t pid) {
  const int fd = open(fmt::format("/proc/{}/stat", pid).c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return std::nullopt;
  char buffer[1024];
  const ssize_t length = read(fd, buffer, sizeof(buffer) - 1);
  close(fd);
  if (length <= 0) return std::nullopt;
  buffer[length] = '\0';
  // "pid (name) state ..."; the name may contain anything, so its end is searched from the end of the text.
  const std::string_view text(buffer, static_cast<std::size_t>(length));
  std::size_t position = text.rfind(") ");
  if (position == std::string_view::npos) return std::nullopt;
  position += 2;
  ProcessStatus status;
  status.state = text[position];
  for (int field = 3; field < 22 && position != std::string_view::npos; ++field) {
    position = text.find(' ', position + 1);
  }
  if (position == std::string_view::npos) return std::nullopt;
  status.start_time = std::strtoull(buffer + position, nullptr, 10);
  if (status.state == 'Z' || status.state == 'X') return std::nullopt;
  return status;
}

bool process_lives(std::int64_t pid, std::uint64_t start_time) {
  const auto status = process_status(pid);
  return status && status->start_time == start_time;
}

}  // namespace zeropage::comm
