#include "zeropage/comm/mpi/mpi_runtime.h"

#include <fmt/format.h>
#include <mpi.h>

#include <algorithm>
#include <chrono>
#include <utility>

#include "zeropage/base/error.h"

namespace zeropage::comm {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::microseconds;

constexpr microseconds kLook{50};  // time of polling without sleeps after the last progress
constexpr microseconds kShortestNap{20};
constexpr microseconds kLongestNap{1000};
constexpr microseconds kIdleNap{10'000};

/// True if the program had not initialised MPI.
bool initialize_mpi() {
  int initialized = 0;
  int finalized = 0;
  MPI_Finalized(&finalized);
  if (finalized) {
    throw UsageError(
        "MPI has been finalised in this process and cannot start again: keep the MpiRuntime until the end of main");
  }
  MPI_Initialized(&initialized);
  if (!initialized) {
    int provided = 0;
    check_mpi(MPI_Init_thread(nullptr, nullptr, MPI_THREAD_MULTIPLE, &provided), "MPI_Init_thread");
    return true;
  }
  int level = 0;
  check_mpi(MPI_Query_thread(&level), "MPI_Query_thread");
  if (level < MPI_THREAD_MULTIPLE) {
    throw UsageError(
        "the program initialised MPI with less than MPI_THREAD_MULTIPLE, so only its own thread may call MPI: ask "
        "MPI_Init_thread for MPI_THREAD_MULTIPLE, or leave the initialisation to MpiRuntime::start");
  }
  return false;
}

}  // namespace

void check_mpi(int code, std::string_view what) {
  if (code == MPI_SUCCESS) return;
  char text[MPI_MAX_ERROR_STRING] = {};
  int length = 0;
  MPI_Error_string(code, text, &length);
  throw IoError(fmt::format("{} failed: {}", what, std::string_view(text, static_cast<std::size_t>(length))));
}

std::shared_ptr<MpiRuntime> MpiRuntime::start() {
  std::shared_ptr<MpiRuntime> runtime(new MpiRuntime());
  runtime->call([&] { runtime->owned_ = initialize_mpi(); });
  return runtime;
}

MpiRuntime::MpiRuntime() : thread_([this] { run(); }) {}

MpiRuntime::~MpiRuntime() {
  {
    const std::scoped_lock lock(mutex_);
    stop_ = true;
    awake_ = true;
  }
  wake_.notify_one();
  thread_.join();
}

void MpiRuntime::call(std::function<void()> task) {
  std::packaged_task<void()> packaged(std::move(task));
  std::future<void> done = packaged.get_future();
  {
    const std::scoped_lock lock(mutex_);
    tasks_.push_back(std::move(packaged));
    awake_ = true;
  }
  wake_.notify_one();
  done.get();
}

void MpiRuntime::add(std::shared_ptr<MpiPoller> poller) { pollers_.push_back(std::move(poller)); }

void MpiRuntime::wake() {
  {
    const std::scoped_lock lock(mutex_);
    awake_ = true;
  }
  wake_.notify_one();
}

void MpiRuntime::run() {
  auto last_progress = Clock::now();
  while (true) {
    std::vector<std::packaged_task<void()>> tasks;
    {
      std::unique_lock lock(mutex_);
      const auto since = std::chrono::duration_cast<microseconds>(Clock::now() - last_progress);
      const bool looks = !idle_ && since < kLook;
      const auto nap = idle_ ? kIdleNap : std::clamp(since / 4, kShortestNap, kLongestNap);
      if (!looks) wake_.wait_for(lock, nap, [this] { return awake_; });
      if (awake_) last_progress = Clock::now();
      awake_ = false;
      tasks.swap(tasks_);
      if (stop_ && tasks.empty()) break;
    }
    for (auto& task : tasks) task();
    if (step()) last_progress = Clock::now();
  }
  end();
}

/// Polls every poller once; true if there was progress.
bool MpiRuntime::step() {
  bool advanced = false;
  idle_ = true;
  std::erase_if(pollers_, [&](const std::shared_ptr<MpiPoller>& poller) {
    const MpiPoller::Progress progress = poller->progress();
    advanced = advanced || progress == MpiPoller::Progress::kAdvanced;
    idle_ = idle_ && (progress == MpiPoller::Progress::kIdle || progress == MpiPoller::Progress::kEnded);
    return progress == MpiPoller::Progress::kEnded;
  });
  return advanced;
}

void MpiRuntime::end() {
  bool well = true;
  for (const auto& poller : pollers_) well = poller->end() && well;
  pollers_.clear();
  if (owned_ && well) MPI_Finalize();
}

}  // namespace zeropage::comm
