#include "zeropage/reduce/backward_end.h"

#include <fmt/format.h>
#include <torch/csrc/autograd/engine.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/graph_task.h>

#include <atomic>
#include <utility>

#include "zeropage/base/log.h"

namespace zeropage::reduce {

struct BackwardEnd::Backward {
  std::function<void()> end;
  std::atomic<int> task{-1};  // autograd's number of the last task that got a callback
  std::atomic<bool> over{false};
};

/// Owned by a graph task.
class BackwardEnd::Callback {
 public:
  explicit Callback(std::shared_ptr<Backward> backward) : backward_(std::move(backward)) {}
  Callback(const Callback&) = delete;

  ~Callback() {
    if (backward_->over || torch::autograd::get_current_graph_task_id() < 0) return;
    try {
      queue(backward_);
    } catch (const std::exception& error) {
      log_warn(fmt::format("p.grad will stay None after this backward: {}", error.what()));
    }
  }

  void task_ends() {
    if (torch::autograd::get_current_node() == nullptr && !backward_->over.exchange(true)) backward_->end();
  }

 private:
  std::shared_ptr<Backward> backward_;
};

void BackwardEnd::queue(const std::shared_ptr<Backward>& backward) {
  backward->task = torch::autograd::get_current_graph_task_id();
  torch::autograd::Engine::get_default_engine().queue_callback(
      [callback = std::make_shared<Callback>(backward)] { callback->task_ends(); });
}

void BackwardEnd::watch(const std::function<void()>& begin, const std::function<void()>& end) {
  const std::lock_guard lock(mutex_);
  auto backward = backward_.lock();
  if (!backward || backward->over) {
    begin();
    backward = std::make_shared<Backward>();
    backward->end = end;
    backward_ = backward;
  } else if (backward->task == torch::autograd::get_current_graph_task_id()) {
    return;
  }
  queue(backward);
}

}  // namespace zeropage::reduce
