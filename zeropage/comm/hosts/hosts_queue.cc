#include "zeropage/comm/hosts/hosts_queue.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <exception>
#include <utility>

#include "zeropage/base/error.h"
#include "zeropage/comm/queued_work.h"

namespace zeropage::comm {
namespace {

std::size_t index_of(Side side) { return static_cast<std::size_t>(side); }

class HostsWork final : public QueuedWork<HostsQueue, HostsOperation> {
 public:
  using QueuedWork::QueuedWork;
  ~HostsWork() override {
    end([] { return "an error ended a collective of its"; });
    // Buffers may be gone after this line.
    *operation_ = HostsOperation{.complete = true};
  }
};

/// A collective of one side on a device's streams. Only its caller waits for it, on its own stream.
class SideWork final : public Work {
 public:
  SideWork(HostsQueue& queue, Side side, std::vector<WorkPtr> works)
      : queue_(queue), side_(side), works_(std::move(works)) {}
  bool poll() override {
    return queue_.on(side_, [&](Communicator&) {
      return std::ranges::all_of(works_, [](const auto& work) { return work->poll(); });
    });
  }
  void wait() override {
    queue_.on(side_, [&](Communicator&) {
      for (const auto& work : works_) work->wait();
    });
  }

 private:
  HostsQueue& queue_;
  const Side side_;
  const std::vector<WorkPtr> works_;
};

}  // namespace

std::string name_of_side(Side side, const HostGrid& grid, int rank, std::string_view unit) {
  const int host = grid.host_of(rank);
  if (side == Side::kInside) {
    return fmt::format("among the ranks of {} {}, whose rank 0 is rank {} of the job", unit, host,
                       grid.rank_at(host, 0));
  }
  std::vector<int> column;
  for (int other = 0; other < grid.hosts; ++other) column.push_back(grid.rank_at(other, grid.local_of(rank)));
  return fmt::format("among ranks {} of the job, one per {} and counted from 0", fmt::join(column, ", "), unit);
}

HostsQueue::HostsQueue(std::shared_ptr<Communicator> inside, std::shared_ptr<Communicator> between,
                       std::string_view unit, std::shared_ptr<Aborts> aborts, std::shared_ptr<GroupDevice> device)
    : inside_(std::move(inside)),
      between_(std::move(between)),
      aborts_(std::move(aborts)),
      rank_(grid().rank_at(between_->rank(), inside_->rank())),
      device_(std::move(device)),
      names_{name_of_side(Side::kInside, grid(), rank_, unit), name_of_side(Side::kBetween, grid(), rank_, unit)} {}

std::shared_ptr<const SumMemory> HostsQueue::memory_of(const void* buffer) const {
  return is_on_device(buffer) ? device_->sums() : host_sums();
}

WorkPtr HostsQueue::start(HostsOperation operation, const void* buffer) {
  operation.checked = checking_;
  if (!operation.stages.empty() && is_on_device(buffer)) {
    operation.on_stream = device_->orders_streams();
    if (operation.on_stream) finish_unordered();
    if (operation.on_stream && operation.stages.size() == 1 && !operation.stages[0].finish) {
      const HostsStage& only = operation.stages[0];
      on(only.side, [&](Communicator& communicator) { only.start(communicator, operation.works); });
      return std::make_unique<SideWork>(*this, only.side, std::move(operation.works));
    }
    operation.stream = device_->begin();
  }
  auto shared = std::make_shared<HostsOperation>(std::move(operation));
  pending_.push_back(shared);
  advance();
  return std::make_unique<HostsWork>(*this, std::move(shared));
}

bool HostsQueue::poll(HostsOperation& operation) {
  if (!operation.complete) advance();
  if (!operation.complete) return false;
  if (!operation.stream) return true;
  if (!operation.stream->is_over()) return false;
  operation.stream->order_current();
  return true;
}

void HostsQueue::wait(HostsOperation& operation) {
  finish(operation);
  if (operation.stream) operation.stream->order_current();
}

void HostsQueue::finish(HostsOperation& operation) {
  while (true) {
    if (!operation.complete) advance();
    if (operation.complete) return;
    const auto oldest = pending_.front();
    const auto scope = oldest->stream ? oldest->stream->enter() : nullptr;
    for (const auto& work : oldest->compared) on(work.first, [&](Communicator&) { work.second->wait(); });
    if (!oldest->running) continue;
    const Side side = oldest->stages[oldest->started - 1].side;
    for (const auto& work : oldest->works) on(side, [&](Communicator&) { work->wait(); });
  }
}

/// Waits for the collectives whose stages start when this rank polls.
void HostsQueue::finish_unordered() {
  const auto is_unordered = [](const auto& operation) { return !operation->on_stream; };
  for (auto next = std::ranges::find_if(pending_, is_unordered); next != pending_.end();
       next = std::ranges::find_if(pending_, is_unordered)) {
    finish(*std::shared_ptr(*next));
  }
}

void HostsQueue::drain() {
  while (!pending_.empty()) finish(*std::shared_ptr(pending_.front()));
}

void HostsQueue::set_checking(bool checking) {
  checking_ = checking;
  for (const Side side : {Side::kInside, Side::kBetween}) at(side).set_checking(checking);
}

void HostsQueue::advance() {
  std::array<bool, 2> may_start = {true, true};
  for (const auto& operation : pending_) {
    advance(*operation, may_start);
    for (std::size_t stage = operation->started; stage < operation->stages.size(); ++stage) {
      may_start[index_of(operation->stages[stage].side)] = false;
    }
  }
  std::erase_if(pending_, [](const auto& operation) { return operation->complete; });
}

void HostsQueue::advance(HostsOperation& operation, const std::array<bool, 2>& may_start) {
  const auto scope = operation.stream && !operation.stages.empty() ? operation.stream->enter() : nullptr;
  while (works_done(operation)) {
    if (operation.started == operation.stages.size()) {
      if (operation.stream && !operation.stages.empty()) operation.stream->end();
      operation.stages.clear();  // and their buffers
      operation.started = 0;
      operation.complete = checks_passed(operation);
      return;
    }
    const HostsStage& stage = operation.stages[operation.started];
    if (!may_start[index_of(stage.side)]) return;
    ++operation.started;
    operation.running = true;
    on(stage.side, [&](Communicator& communicator) {
      communicator.set_checking(operation.checked);
      stage.start(communicator, operation.works);
      communicator.set_checking(checking_);
    });
  }
}

/// True if no stage of `operation` is running; then the results of the last one have been processed.
bool HostsQueue::works_done(HostsOperation& operation) {
  if (!operation.running) return true;
  const HostsStage& stage = operation.stages[operation.started - 1];
  for (auto& work : operation.works) {
    if (!operation.on_stream) {
      if (!on(stage.side, [&](Communicator&) { return work->poll(); })) return false;
      continue;
    }
    on(stage.side, [&](Communicator&) { operation.stream->order_after(*work); });
    if (operation.checked) operation.compared.emplace_back(stage.side, std::move(work));
  }
  operation.works.clear();
  operation.running = false;
  if (stage.finish) stage.finish();
  return true;
}

void HostsQueue::throw_if_aborted() {
  for (const Side side : {Side::kInside, Side::kBetween}) {
    on(side, [](Communicator& communicator) { communicator.throw_if_aborted(); });
  }
}

/// Whether the peers of all works on the stream have called the same.
bool HostsQueue::checks_passed(HostsOperation& operation) {
  while (!operation.compared.empty()) {
    const auto& work = operation.compared.back();
    if (!on(work.first, [&](Communicator&) { return work.second->poll(); })) return false;
    operation.compared.pop_back();
  }
  return true;
}

void HostsQueue::abort(std::string_view reason) {
  if (aborts_) aborts_->publish(fmt::format("rank {} of the job aborted: {}", rank_, reason));
  const std::string named = fmt::format("rank {} of the job: {}", rank_, reason);
  inside_->abort(named);
  between_->abort(named);
}

/// Informs all ranks of the current exception, and adds to its message which group its rank numbers are of. If it is
/// the consequence of another rank's, its message is that one's.
void HostsQueue::rethrow(Side side) {
  const auto told = [&](const std::exception& error) {
    std::string message = fmt::format("{}: {}", names_[index_of(side)], error.what());
    if (aborts_) {
      aborts_->publish(message);
      const std::string first = aborts_->reason();
      if (first.find(error.what()) == first.npos || first == error.what()) message = first;
    }
    at(side == Side::kInside ? Side::kBetween : Side::kInside).abort(message);
    return message;
  };
  try {
    throw;
  } catch (const TimeoutError& error) {
    throw TimeoutError(told(error));
  } catch (const PeerError& error) {
    throw PeerError(told(error));
  } catch (const std::exception& error) {
    told(error);
    throw;
  }
}

}  // namespace zeropage::comm
