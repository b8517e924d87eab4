#include "zeropage/comm/mpi/mpi_group.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "zeropage/base/error.h"

// The functions that MPI's thread runs.

namespace zeropage::comm {
namespace {

using std::chrono::milliseconds;

constexpr int kControlTag = 0;
constexpr int kTags = 32000;         // tags up to 32767 are legal everywhere
constexpr int kControlBytes = 2000;  // small enough to be sent eagerly by all implementations
constexpr char kFailed = 'f';
constexpr char kClosed = 'c';
constexpr milliseconds kGrace{500};      // for matched messages to finish after a failure
constexpr milliseconds kFarewell{1000};  // for control messages to leave at the end
constexpr milliseconds kFarewellNap{2};

}  // namespace

std::shared_ptr<MpiGroup> MpiGroup::make(MpiRuntime& runtime, milliseconds timeout, std::int64_t message_bytes) {
  std::shared_ptr<MpiGroup> group(new MpiGroup(runtime, timeout, message_bytes));
  runtime.call([&] {
    check_mpi(MPI_Comm_rank(MPI_COMM_WORLD, &group->rank_), "MPI_Comm_rank");
    check_mpi(MPI_Comm_size(MPI_COMM_WORLD, &group->size_), "MPI_Comm_size");
    group->closed_at_.resize(static_cast<std::size_t>(group->size_));
    check_mpi(MPI_Comm_idup(MPI_COMM_WORLD, &group->comm_, &group->opening_), "MPI_Comm_idup");
    runtime.add(group);
  });
  group->wait_until_open();
  return group;
}

/// True when the duplicate of the communicator has been made.
bool MpiGroup::open() {
  if (opening_ == MPI_REQUEST_NULL) return true;
  int done = 0;
  check_mpi(MPI_Test(&opening_, &done, MPI_STATUS_IGNORE), "MPI_Comm_idup");
  if (!done) return false;
  check_mpi(MPI_Comm_set_errhandler(comm_, MPI_ERRORS_RETURN), "MPI_Comm_set_errhandler");
  heard_.resize(kControlBytes);
  listen();
  {
    const std::scoped_lock lock(mutex_);
    open_ = true;
  }
  changed_.notify_all();
  return true;
}

void MpiGroup::listen() {
  check_mpi(MPI_Irecv(heard_.data(), kControlBytes, MPI_BYTE, MPI_ANY_SOURCE, kControlTag, comm_, &hearing_),
            "MPI_Irecv");
}

/// A stage in which all ranks exchange the description of their collective, before anything else is sent.
MpiStage MpiGroup::make_check(const MpiOperation& operation) const {
  const auto bytes = static_cast<std::int64_t>(sizeof(Call));
  auto calls = std::make_shared<std::vector<Call>>(static_cast<std::size_t>(size_), operation.call);
  MpiStage stage;
  stage.start = [=, this] {
    std::vector<MpiTransfer> transfers;
    for (const bool send : {false, true}) {
      for (int r = 0; r < size_; ++r) {
        const int shown = send ? rank_ : r;
        auto* data = reinterpret_cast<std::byte*>(&(*calls)[static_cast<std::size_t>(shown)]);
        if (r != rank_) transfers.push_back({r, send, data, bytes});
      }
    }
    return transfers;
  };
  stage.finish = [=, this, sequence = operation.sequence] {
    const Call& mine = (*calls)[static_cast<std::size_t>(rank_)];
    for (int r = 0; r < size_; ++r) {
      const Call& theirs = (*calls)[static_cast<std::size_t>(r)];
      if (!same_call(mine, theirs)) throw PeerError(describe_mismatch(sequence, rank_, mine, r, theirs));
    }
  };
  return stage;
}

MpiPoller::Progress MpiGroup::progress() {
  bool tell = false;
  bool failed = false;
  bool closing = false;
  {
    const std::scoped_lock lock(mutex_);
    std::ranges::move(started_, std::back_inserter(active_));
    started_.clear();
    failed = !failure_.empty();
    tell = std::exchange(tell_failure_, false);
    closing = closing_;
  }
  bool advanced = false;
  try {
    if (!open()) return failed && wind_down() ? Progress::kIdle : Progress::kWaiting;
    if (tell) tell_all(kFailed, failure_);
    if (closing && !std::exchange(farewell_told_, true)) tell_all(kClosed, "");
    advanced = exchange_control();
    if (failed) return wind_down() ? Progress::kIdle : Progress::kWaiting;
    for (const auto& operation : active_) advanced = advance(*operation) || advanced;
  } catch (const std::exception& error) {
    fail(fmt::format("rank {} aborted: {}", rank_, error.what()), true);
    return Progress::kAdvanced;
  }
  std::erase_if(active_, [](const auto& operation) { return operation->stage == operation->stages.size(); });
  const bool all_closed = farewell_told_ && std::ranges::count(closed_at_, Clock::time_point{}) == 1;
  if (all_closed && telling_.empty()) {
    end();
    check_mpi(MPI_Comm_free(&comm_), "MPI_Comm_free");
    return Progress::kEnded;
  }
  if (advanced) return Progress::kAdvanced;
  return active_.empty() && telling_.empty() ? Progress::kIdle : Progress::kWaiting;
}

/// Runs as many stages as can be finished without waiting; true if one was finished.
bool MpiGroup::advance(MpiOperation& operation) {
  bool advanced = false;
  while (operation.stage < operation.stages.size()) {
    if (!operation.posted) post(operation);
    if (!test(operation)) return advanced;
    if (const auto& finish = operation.stages[operation.stage].finish) finish();
    operation.stages[operation.stage] = {};  // frees what its functions own
    ++operation.stage;
    operation.posted = false;
    advanced = true;
  }
  {
    const std::scoped_lock lock(mutex_);
    operation.complete = true;
  }
  changed_.notify_all();
  return true;
}

void MpiGroup::post(MpiOperation& operation) {
  const int tag = 1 + static_cast<int>(operation.sequence % kTags);
  operation.requests.clear();
  operation.messages.clear();
  for (const MpiTransfer& transfer : operation.stages[operation.stage].start()) {
    for (std::int64_t offset = 0; offset < transfer.bytes; offset += message_bytes_) {
      const auto bytes = static_cast<int>(std::min(message_bytes_, transfer.bytes - offset));
      std::byte* data = transfer.data + offset;
      MPI_Request request = MPI_REQUEST_NULL;
      if (transfer.send) {
        check_mpi(MPI_Isend(data, bytes, MPI_BYTE, transfer.peer, tag, comm_, &request), "MPI_Isend");
      } else {
        check_mpi(MPI_Irecv(data, bytes, MPI_BYTE, transfer.peer, tag, comm_, &request), "MPI_Irecv");
      }
      operation.requests.push_back(request);
      operation.messages.push_back({transfer.peer, transfer.send, bytes});
    }
  }
  operation.posted = true;
  note_missing(operation);
}

/// True when all messages of the stage are done.
bool MpiGroup::test(MpiOperation& operation) {
  const int count = static_cast<int>(operation.requests.size());
  if (count == 0) return true;
  std::vector<int> indices(operation.requests.size());
  std::vector<MPI_Status> statuses(operation.requests.size());
  int done = 0;
  const int code = MPI_Testsome(count, operation.requests.data(), &done, indices.data(), statuses.data());
  if (code != MPI_SUCCESS && code != MPI_ERR_IN_STATUS) check_mpi(code, "MPI_Testsome");
  if (done == MPI_UNDEFINED) return true;
  for (int i = 0; i < done; ++i) {
    const auto& message = operation.messages[static_cast<std::size_t>(indices[static_cast<std::size_t>(i)])];
    const MPI_Status& status = statuses[static_cast<std::size_t>(i)];
    const std::string what =
        fmt::format("{} rank {} in {} (collective {})", message.send ? "sending to" : "receiving from", message.peer,
                    describe_call(operation.call), operation.sequence);
    if (code == MPI_ERR_IN_STATUS) check_mpi(status.MPI_ERROR, what);
    int bytes = message.bytes;
    if (!message.send) check_mpi(MPI_Get_count(&status, MPI_BYTE, &bytes), "MPI_Get_count");
    if (bytes != message.bytes) {
      throw PeerError(fmt::format("{}: expected {} bytes, got {}; all ranks must start the same collectives", what,
                                  message.bytes, bytes));
    }
  }
  if (done > 0) note_missing(operation);
  return std::ranges::count(operation.requests, MPI_REQUEST_NULL) == count;
}

void MpiGroup::note_missing(MpiOperation& operation) {
  std::vector<int> missing;
  for (std::size_t i = 0; i < operation.requests.size(); ++i) {
    if (operation.requests[i] != MPI_REQUEST_NULL) missing.push_back(operation.messages[i].peer);
  }
  std::ranges::sort(missing);
  missing.erase(std::unique(missing.begin(), missing.end()), missing.end());
  const std::scoped_lock lock(mutex_);
  operation.missing = std::move(missing);
}

/// After a failure: releases callers' buffers from MPI; true when done. Messages that were not matched by then never
/// will be.
bool MpiGroup::wind_down() {
  const bool first = cancelled_at_ == Clock::time_point{};
  if (first) cancelled_at_ = Clock::now();
  bool busy = false;
  for (const auto& operation : active_) {
    for (std::size_t i = 0; i < operation->requests.size(); ++i) {
      MPI_Request& request = operation->requests[i];
      if (request == MPI_REQUEST_NULL) continue;
      if (first && !operation->messages[i].send) MPI_Cancel(&request);
      int done = 0;
      MPI_Test(&request, &done, MPI_STATUS_IGNORE);
      busy = busy || !done;
    }
  }
  if (busy && Clock::now() - cancelled_at_ < kGrace) return false;
  {
    const std::scoped_lock lock(mutex_);
    quiet_ = true;
  }
  changed_.notify_all();
  return true;
}

/// Receives peers' messages outside of collectives; true if there was one.
bool MpiGroup::exchange_control() {
  bool heard = false;
  while (true) {
    int done = 0;
    MPI_Status status{};
    check_mpi(MPI_Test(&hearing_, &done, &status), "MPI_Test");
    if (!done) break;
    heard = true;
    int bytes = 0;
    check_mpi(MPI_Get_count(&status, MPI_BYTE, &bytes), "MPI_Get_count");
    const std::string text(heard_.data(), static_cast<std::size_t>(bytes));
    listen();
    if (text.starts_with(kFailed)) fail(text.substr(1), false);
    if (text.starts_with(kClosed)) {
      const std::scoped_lock lock(mutex_);
      closed_at_[static_cast<std::size_t>(status.MPI_SOURCE)] = Clock::now();
    }
  }
  std::erase_if(telling_, [](MPI_Request& request) {
    int done = 0;
    return MPI_Test(&request, &done, MPI_STATUS_IGNORE) != MPI_SUCCESS || done;
  });
  if (telling_.empty()) told_.clear();
  return heard;
}

void MpiGroup::tell_all(char kind, const std::string& text) {
  told_.push_back(std::make_unique<std::string>((kind + text).substr(0, kControlBytes)));
  for (int r = 0; r < size_; ++r) {
    if (r == rank_) continue;
    const std::string& message = *told_.back();
    MPI_Request request = MPI_REQUEST_NULL;
    check_mpi(MPI_Isend(message.data(), static_cast<int>(message.size()), MPI_BYTE, r, kControlTag, comm_, &request),
              "MPI_Isend");
    telling_.push_back(request);
  }
}

bool MpiGroup::end() {
  const auto deadline = Clock::now() + kFarewell;
  while (hearing_ != MPI_REQUEST_NULL) {
    const bool said = farewell_told_ && telling_.empty();
    if (said || Clock::now() > deadline) {
      MPI_Cancel(&hearing_);
      MPI_Wait(&hearing_, MPI_STATUS_IGNORE);
      break;
    }
    progress();
    std::this_thread::sleep_for(kFarewellNap);
  }
  const std::scoped_lock lock(mutex_);
  return failure_.empty() && telling_.empty();
}

}  // namespace zeropage::comm
