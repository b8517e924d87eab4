#include "zeropage/launch/rank_log.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <ctime>

#include "zeropage/launch/system_call.h"

namespace zeropage::launch {
namespace {

Descriptor open_log(const std::string& folder, const std::string& started, int rank) {
  const std::string hint = "give --log_dir a writable folder with free space";
  if (::mkdir(folder.c_str(), 0700) != 0 && errno != EEXIST) throw_errno("cannot make the folder " + folder, hint);
  const std::string path = fmt::format("{}/{}_rank{}.log", folder, started, rank);
  Descriptor file(::open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_NOFOLLOW | O_CLOEXEC, 0600));
  if (!file) throw_errno("cannot make the log file " + path, hint);
  return file;
}

}  // namespace

RankLog::RankLog(const RankPlan& plan, const Console& console, const std::string& folder, const std::string& started)
    : number(plan.rank),
      host(plan.host),
      prefix(host.empty() ? fmt::format("[rank {}] ", number) : fmt::format("[{}:{}] ", host, number)),
      out(!console.is_terminal(Stream::kOut)),
      err(!console.is_terminal(Stream::kErr)) {
  if (!folder.empty()) file = open_log(folder, started, number);
}

void RankLog::take(Stream stream, std::string_view bytes, Time now, Console& console, bool is_first) {
  const auto on_line = [&](std::string_view line) {
    console.line(stream, prefix, line, is_first);
    if (stream == Stream::kErr) tail.add(line, now);
    // If the disk is full, the log is incomplete, but the job continues.
    if (file) (void)!::write(file.get(), std::string(line).append("\n").data(), line.size() + 1);
  };
  if (bytes.empty()) {
    lines(stream).finish(on_line);
  } else {
    lines(stream).feed(bytes, now, on_line);
  }
  if (!is_first) return;
  const Stream other = stream == Stream::kErr ? Stream::kOut : Stream::kErr;
  console.live(stream, prefix, (lines(stream).unfinished().empty() ? lines(other) : lines(stream)).unfinished());
}

std::string time_stamp() {
  const std::time_t now = std::time(nullptr);
  std::tm parts{};
  ::localtime_r(&now, &parts);
  char text[32];
  std::strftime(text, sizeof(text), "%Y%m%d_%H%M%S", &parts);
  return text;
}

}  // namespace zeropage::launch
