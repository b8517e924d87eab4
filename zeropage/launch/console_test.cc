#include "zeropage/launch/console.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <signal.h>
#include <unistd.h>

#include "zeropage/launch/spawn.h"
#include "zeropage/launch/system_call.h"

namespace zeropage::launch {
namespace {

/// Writes until the queue is empty, and returns the bytes read from `end`.
std::string drain(Console& console, int end) {
  std::string text;
  char buffer[4096];
  ::fcntl(end, F_SETFL, O_NONBLOCK);
  while (true) {
    pollfd ready{console.wanted_fd(), POLLOUT, 0};
    if (::poll(&ready, 1, 0) == 1) console.write_some();
    const ssize_t got = ::read(end, buffer, sizeof(buffer));
    if (got > 0) text.append(buffer, static_cast<std::size_t>(got));
    if (got <= 0 && console.wanted_fd() < 0) return text;
  }
}

// Catches lines of stdout and stderr that change places, and progress that fills a log.
TEST(Console, LinesOfBothStreamsKeepTheirOrder) {
  Pipe pipe = make_pipe();
  Console console(pipe.write.get(), pipe.write.get());
  console.line(Stream::kOut, "[rank 0] ", "a");
  console.line(Stream::kErr, "[rank 1] ", "b");
  console.live(Stream::kOut, "[rank 0] ", "10%");  // no terminal: not shown
  console.notice("c");
  EXPECT_EQ(drain(console, pipe.read.get()), "[rank 0] a\n[rank 1] b\nzeropage: c\n");
}

// Catches a line that is cut where the pipe was full.
TEST(Console, LinesLargerThanAPipeStayWhole) {
  Pipe pipe = make_pipe();
  Console console(pipe.write.get(), pipe.write.get());
  const std::string large(300'000, 'x');
  console.line(Stream::kOut, "", large);
  console.line(Stream::kErr, "", "next");
  EXPECT_EQ(drain(console, pipe.read.get()), large + "\nnext\n");
}

// Catches a job that waits for the reader of its output, and output that is lost while the reader waits.
TEST(Console, AReaderThatStopsFillsTheQueueAndBlocksNobody) {
  Pipe pipe = make_pipe();
  Console console(pipe.write.get(), pipe.write.get());
  while (!console.is_full()) console.line(Stream::kOut, "", std::string(1000, 'x'));
  pollfd ready{console.wanted_fd(), POLLOUT, 0};
  while (::poll(&ready, 1, 0) == 1) console.write_some();  // returns when the pipe is full
  EXPECT_GT(drain(console, pipe.read.get()).size(), 1'000'000u);
  EXPECT_FALSE(console.is_full());
}

// Catches a launcher that ends, or keeps lines forever, because nobody reads one of its streams.
TEST(Console, AReaderThatIsGoneIsReportedAndDropped) {
  ::signal(SIGPIPE, SIG_IGN);
  Pipe gone = make_pipe();
  Pipe pipe = make_pipe();
  Console console(gone.write.get(), pipe.write.get());
  gone.read.reset();
  console.line(Stream::kOut, "", "lost");
  EXPECT_FALSE(console.write_some());
  console.line(Stream::kOut, "", "dropped");
  console.line(Stream::kErr, "", "kept");
  EXPECT_EQ(drain(console, pipe.read.get()), "kept\n");
}

// Catches a progress line that another rank's line overwrites for good.
TEST(Console, ATerminalKeepsTheUnfinishedLineBelow) {
  Pipe terminal = make_terminal(-1, 0);
  Console console(terminal.write.get(), terminal.write.get());
  console.live(Stream::kOut, "[rank 0] ", "10%");
  console.line(Stream::kErr, "[rank 1] ", "hello");
  console.line(Stream::kOut, "[rank 0] ", "100%", true);
  EXPECT_EQ(drain(console, terminal.read.get()),
            "\r\033[K[rank 0] 10%"
            "\r\033[K[rank 1] hello\n[rank 0] 10%"
            "\r\033[K[rank 0] 100%\n");
}

}  // namespace
}  // namespace zeropage::launch
