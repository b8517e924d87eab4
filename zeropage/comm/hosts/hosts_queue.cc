#include "zeropage/comm/hosts/hosts_queue.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

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
                       std::string_view unit, std::shared_ptr<Aborts> aborts)
    : inside_(std::move(inside)),
      between_(std::move(between)),
      aborts_(std::move(aborts)),
      rank_(grid().rank_at(between_->rank(), inside_->rank())),
      names_{name_of_side(Side::kInside, grid(), rank_, unit), name_of_side(Side::kBetween, grid(), rank_, unit)} {}

std::shared_ptr<HostsOperation> HostsQueue::start(HostsOperation operation) {
  operation.checked = checking_;
  auto shared = std::make_shared<HostsOperation>(std::move(operation));
  pending_.push_back(shared);
  advance();
  return shared;
}

WorkPtr HostsQueue::start_work(HostsOperation operation) {
  return std::make_unique<HostsWork>(*this, start(std::move(operation)));
}

bool HostsQueue::poll(HostsOperation& operation) {
  if (!operation.complete) advance();
  return operation.complete;
}

void HostsQueue::wait(HostsOperation& operation) {
  while (!poll(operation)) {
    HostsOperation& oldest = *pending_.front();
    const Side side = oldest.stages[oldest.started - 1].side;
    for (const auto& work : oldest.works) on(side, [&](Communicator&) { work->wait(); });
  }
}

void HostsQueue::drain() {
  while (!pending_.empty()) wait(*std::shared_ptr(pending_.front()));
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
  while (works_done(operation)) {
    if (operation.started == operation.stages.size()) {
      operation.complete = true;
      operation.stages.clear();  // and their buffers
      operation.started = 0;
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
  for (const auto& work : operation.works) {
    if (!on(stage.side, [&](Communicator&) { return work->poll(); })) return false;
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
