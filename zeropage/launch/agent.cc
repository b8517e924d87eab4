#include "zeropage/launch/agent.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <optional>

#include "zeropage/base/descriptor.h"
#include "zeropage/base/error.h"
#include "zeropage/base/exit_code.h"
#include "zeropage/launch/cores.h"
#include "zeropage/launch/guard.h"
#include "zeropage/launch/host.h"
#include "zeropage/launch/local_ranks.h"
#include "zeropage/launch/system_call.h"
#include "zeropage/launch/wire.h"

namespace zeropage::launch {
namespace {

using std::chrono::milliseconds;
using Clock = std::chrono::steady_clock;

constexpr milliseconds kFarewellPatience{1'000};

SpawnContext rank_context(const GuardContext& guard, int null_fd) {
  SpawnContext context;
  context.in_fd = null_fd;
  context.group = guard.front_group;
  context.mask = guard.rank_mask;
  return context;
}

class Agent : public RankWatcher {
 public:
  Agent(Descriptor in, Descriptor out, const GuardContext& guard, const std::string& argv0)
      : guard_(guard),
        argv0_(argv0),
        channel_(std::move(in), std::move(out), false),
        null_(::open("/dev/null", O_RDONLY | O_CLOEXEC)),
        ranks_(rank_context(guard, null_.get()), [](const RankPlan&, Stream) { return make_pipe(); }) {}
  int run();

  void on_output(int rank, Stream stream, std::string_view bytes) override {
    channel_.send(stream == Stream::kErr ? FrameKind::kErr : FrameKind::kOut, rank, bytes);
  }
  void on_ended(int rank, int status) override { channel_.send(FrameKind::kEnded, rank, std::to_string(status)); }
  void on_notice(std::string_view text) override { channel_.send(FrameKind::kNotice, 0, text); }
  void on_lost(const std::string& host, std::string_view why, Time time) override {}

 private:
  void on_frame(const Frame& frame);
  HostReport answer(const Question& question);
  void start(const std::vector<RankPlan>& ranks);
  void poll_once();
  void give_up();
  void say_farewell();

  const GuardContext& guard_;
  const std::string& argv0_;
  Channel channel_;
  Descriptor null_;
  Descriptor child_signals_;
  LocalRanks ranks_;
  std::optional<Port> port_;
  Time last_heard_ = Clock::now();
  Time next_beat_ = Clock::now();
  Time next_ = Time::max();
  bool has_started_ = false;
  bool is_alone_ = false;  ///< the launcher, or our front process, has ended
};

int Agent::run() {
  sigset_t child;
  sigemptyset(&child);
  sigaddset(&child, SIGCHLD);
  child_signals_.reset(::signalfd(-1, &child, SFD_CLOEXEC | SFD_NONBLOCK));
  if (!child_signals_ || !null_) throw_errno("cannot watch the ranks", "raise the limit of open files (ulimit -n)");
  channel_.send_greeting();
  while (!ranks_.is_gone() && !(is_alone_ && !has_started_)) {
    poll_once();
    const Time now = Clock::now();
    if (now - last_heard_ > kBeatPatience) give_up();
    if (now >= next_beat_) {
      channel_.send(FrameKind::kBeat);
      next_beat_ = now + kBeatPeriod;
    }
    if (has_started_) next_ = ranks_.advance(now);
  }
  if (!is_alone_) say_farewell();
  return 0;
}

void Agent::poll_once() {
  std::vector<pollfd> fds = {{child_signals_.get(), POLLIN, 0},
                             {is_alone_ ? -1 : guard_.control_fd, POLLIN, 0},
                             {is_alone_ ? -1 : channel_.in_fd(), POLLIN, 0},
                             {channel_.wants_write() ? channel_.out_fd() : -1, POLLOUT, 0}};
  const std::size_t first = fds.size();
  ranks_.add_fds(fds, !channel_.is_full() && !is_alone_);
  const auto left = std::chrono::ceil<milliseconds>(std::min(next_beat_, next_) - Clock::now());
  if (::poll(fds.data(), fds.size(), static_cast<int>(std::max(left, milliseconds(0)).count())) < 0) return;
  if (fds[1].revents) give_up();
  if (fds[2].revents && !channel_.read_some([this](const Frame& frame) { on_frame(frame); })) give_up();
  if (fds[3].revents) channel_.write_some();
  ranks_.serve(fds.data() + first);
  if (fds[0].revents) {
    signalfd_siginfo info;
    while (::read(child_signals_.get(), &info, sizeof(info)) > 0) continue;
    if (has_started_) ranks_.collect();
  }
}

void Agent::on_frame(const Frame& frame) {
  last_heard_ = Clock::now();
  if (frame.kind == FrameKind::kAsk) {
    channel_.send(FrameKind::kReport, 0, encode(answer(decode_question(frame.payload))));
    last_heard_ = Clock::now();  // the check of Python took time, and heartbeats are still in the pipe
  } else if (frame.kind == FrameKind::kStart && !has_started_) {
    start(decode_ranks(frame.payload));
  } else if (frame.kind == FrameKind::kSignal) {
    ranks_.signal_ranks(frame.number);
  } else if (frame.kind == FrameKind::kKill) {
    if (!has_started_) give_up();
    ranks_.kill();
  }
}

void Agent::start(const std::vector<RankPlan>& ranks) {
  has_started_ = true;
  try {
    ranks_.start(ranks, *this);
  } catch (const Error& error) {
    on_notice(error.what());
    for (const RankPlan& rank : ranks) on_ended(rank.rank, W_EXITCODE(kIoExitCode, 0));
    ranks_.kill();
  }
}

HostReport Agent::answer(const Question& question) {
  HostReport report;
  report.version = ZEROPAGE_VERSION;
  const HostAddress address = host_address(std::getenv("SSH_CONNECTION"));
  report.address = address.address;
  report.network = address.network;
  const auto attempt = [&report](auto&& step) {
    try {
      step();
    } catch (const Error& error) {
      report.errors.push_back(error.what());
    }
  };
  attempt([&] {
    if (::chdir(question.folder.c_str()) != 0) {
      throw_errno("cannot work in " + question.folder, "the folder of the launcher must be there on every host");
    }
    check_script(question.script, question.module, question.no_python);
  });
  attempt([&] {
    report.host.gpus = visible_gpus("/dev", question.all_gpus ? nullptr : std::getenv("CUDA_VISIBLE_DEVICES"));
    report.host.cores = allowed_cores();
    report.host.units = one_per_unit(report.host.cores, "/sys/devices/system/cpu");
    report.host.omp_threads_set = std::getenv("OMP_NUM_THREADS") != nullptr;
  });
  attempt([&] {
    if (question.port == 0) return;
    port_ = claim_port(question.port);
    report.host.port = port_->number;
  });
  attempt([&] {
    if (question.no_python) return;
    report.host.python = question.python.empty() ? "" : find_program(question.python);
    if (report.host.python.empty()) report.host.python = find_python(argv0_);
    report.torch = torch_version(report.host.python);
  });
  return report;
}

void Agent::give_up() {
  is_alone_ = true;
  ranks_.kill();
}

void Agent::say_farewell() {
  ranks_.drain();
  channel_.send(FrameKind::kDone);
  const Time end = Clock::now() + kFarewellPatience;
  while (channel_.wants_write() && Clock::now() < end) {
    pollfd fd{channel_.out_fd(), POLLOUT, 0};
    if (::poll(&fd, 1, kFarewellPatience.count()) > 0) channel_.write_some();
  }
}

}  // namespace

int run_agent(const std::string& argv0) {
  open_standard_streams();
  // Messages use descriptors that no child inherits. Any other output to stdout is written to stderr.
  Descriptor in(::fcntl(0, F_DUPFD_CLOEXEC, 3)), out(::fcntl(1, F_DUPFD_CLOEXEC, 3));
  const Descriptor null(::open("/dev/null", O_RDONLY | O_CLOEXEC));
  if (!in || !out || !null || ::dup2(null.get(), 0) < 0 || ::dup2(2, 1) < 0) {
    throw_errno("cannot set up the agent's streams", "raise the limit of open files (ulimit -n)");
  }
  return Guard().run(
      [&](const GuardContext& guard) { return Agent(std::move(in), std::move(out), guard, argv0).run(); });
}

}  // namespace zeropage::launch
