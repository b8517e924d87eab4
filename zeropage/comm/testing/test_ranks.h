/// \file
/// For tests: runs functions on every rank, as threads or as processes, and returns their outcomes.
#pragma once

#include <sys/wait.h>
#include <unistd.h>
#include <csignal>

#include <chrono>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "zeropage/base/error.h"
#include "zeropage/comm/shm/shared_memory_communicator.h"
#include "zeropage/comm/thread_communicator.h"

namespace zeropage::comm {

/// Longer than any collective of a test takes.
inline constexpr std::chrono::milliseconds kRankTimeout{20000};

using RankBody = std::function<void(Communicator&)>;

/// "PeerError: rank 1 ..." for the exception of `body`, "" without one.
inline std::string outcome_of(const std::function<void()>& body) {
  try {
    body();
  } catch (const PeerError& error) {
    return std::string("PeerError: ") + error.what();
  } catch (const TimeoutError& error) {
    return std::string("TimeoutError: ") + error.what();
  } catch (const UsageError& error) {
    return std::string("UsageError: ") + error.what();
  } catch (const IoError& error) {
    return std::string("IoError: ") + error.what();
  } catch (const std::exception& error) {
    return error.what();
  }
  return "";
}

/// Runs `body` on every rank, each a thread. Communicators stay until all bodies have ended. Returns the outcomes.
inline std::vector<std::string> run_threads(std::vector<std::unique_ptr<Communicator>> communicators,
                                            const RankBody& body) {
  std::vector<std::string> outcomes(communicators.size());
  std::vector<std::thread> threads;
  for (std::size_t r = 0; r < communicators.size(); ++r) {
    threads.emplace_back([&, r] { outcomes[r] = outcome_of([&] { body(*communicators[r]); }); });
  }
  for (auto& thread : threads) thread.join();
  return outcomes;
}

inline std::vector<std::string> run_threads(int size, std::chrono::milliseconds timeout, const RankBody& body) {
  return run_threads(make_thread_communicators(size, timeout), body);
}

/// A child process that runs a body and sends its outcome through a pipe.
class RankProcess {
 public:
  explicit RankProcess(const std::function<void()>& body) {
    int ends[2];
    if (pipe(ends) != 0) throw IoError("pipe");
    pid_ = fork();
    if (pid_ == 0) {
      close(ends[0]);
      const std::string outcome = outcome_of(body);
      const ssize_t written = write(ends[1], outcome.data(), outcome.size());
      _exit(written == static_cast<ssize_t>(outcome.size()) ? 0 : 1);
    }
    close(ends[1]);
    pipe_ = ends[0];
  }
  ~RankProcess() {
    signal(SIGCONT);
    signal(SIGKILL);
    join();
    close(pipe_);
  }
  RankProcess(const RankProcess&) = delete;

  void signal(int number) const {
    if (pid_ > 0) kill(pid_, number);
  }

  /// The outcome; "killed" when it died by a signal.
  std::string outcome() {
    std::string text;
    char buffer[4096];
    for (ssize_t n = 0; (n = read(pipe_, buffer, sizeof(buffer))) > 0;)
      text.append(buffer, static_cast<std::size_t>(n));
    join();
    return WIFSIGNALED(status_) ? "killed" : text;
  }

 private:
  void join() {
    if (pid_ > 0) waitpid(pid_, &status_, 0);
    pid_ = -1;
  }

  pid_t pid_ = -1;
  int pipe_ = -1;
  int status_ = 0;
};

/// A name for shared memory that no other test uses.
inline std::string unique_job_name() {
  static int count = 0;
  return "zp-test-" + std::to_string(getpid()) + "-" + std::to_string(count++);
}

/// Starts `size` processes that join `name` and run `body`.
inline std::vector<std::unique_ptr<RankProcess>> start_processes(const std::string& name, int size,
                                                                 std::chrono::milliseconds timeout,
                                                                 const RankBody& body) {
  std::vector<std::unique_ptr<RankProcess>> ranks;
  for (int r = 0; r < size; ++r) {
    ranks.push_back(std::make_unique<RankProcess>([&, r] { body(*join_shared_memory(name, r, size, timeout)); }));
  }
  return ranks;
}

/// Runs `body` on every rank, each a process. Returns the outcomes.
inline std::vector<std::string> run_processes(int size, std::chrono::milliseconds timeout, const RankBody& body) {
  std::vector<std::string> outcomes;
  for (auto& rank : start_processes(unique_job_name(), size, timeout, body)) outcomes.push_back(rank->outcome());
  return outcomes;
}

inline bool contains(const std::string& text, const std::string& piece) { return text.find(piece) != text.npos; }

}  // namespace zeropage::comm
