#include "zeropage/comm/hosts/hosts_queue.h"

#include <fmt/format.h>

#include <utility>

#include "zeropage/base/error.h"

namespace zeropage::comm {
namespace {

std::size_t index_of(Side side) { return static_cast<std::size_t>(side); }

}  // namespace

HostsQueue::HostsQueue(std::shared_ptr<Communicator> inside, std::shared_ptr<Communicator> between,
                       std::string inside_name, std::string between_name)
    : inside_(std::move(inside)),
      between_(std::move(between)),
      names_{std::move(inside_name), std::move(between_name)} {}

std::shared_ptr<HostsOperation> HostsQueue::start(HostsOperation operation) {
  operation.checked = checking_;
  auto shared = std::make_shared<HostsOperation>(std::move(operation));
  pending_.push_back(shared);
  advance();
  return shared;
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

void HostsQueue::abort(std::string_view reason) {
  inside_->abort(reason);
  between_->abort(reason);
}

/// Informs the ranks of the other side of the current exception, and adds to its message which group its rank numbers
/// are of.
void HostsQueue::rethrow(Side side) {
  const auto told = [&](const std::exception& error) {
    std::string message = fmt::format("{}: {}", names_[index_of(side)], error.what());
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
