#include "process_group.h"

#include <c10/core/DeviceGuard.h>

#include <chrono>
#include <condition_variable>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <utility>

#include "current.h"
#include "torch_parts.h"

namespace simulated_device {
namespace {

using Tensors = std::vector<at::Tensor>;
using WorkPtr = c10::intrusive_ptr<c10d::Work>;

/// The result of a collective.
struct Outcome {
  std::mutex mutex;
  std::exception_ptr error;
};

class StreamWork final : public c10d::Work {
 public:
  StreamWork(PointPtr point, std::shared_ptr<Outcome> outcome, int device, bool host_waits, Tensors results)
      : point_(std::move(point)),
        outcome_(std::move(outcome)),
        device_(device),
        host_waits_(host_waits),
        results_(std::move(results)) {}

  bool isCompleted() override { return point_->reached(); }
  bool isSuccess() const override { return point_->reached() && !exception(); }
  std::exception_ptr exception() const override {
    const std::lock_guard lock(outcome_->mutex);
    return outcome_->error;
  }
  std::vector<at::Tensor> result() override { return results_; }
  void synchronize() override { wait(kNoTimeout); }
  void blockCurrentStream() override { Machine::get().block(current_stream(device_), point_); }
  bool wait(std::chrono::milliseconds) override {
    if (host_waits_) Machine::get().wait(point_);
    blockCurrentStream();
    if (point_->reached() && exception()) std::rethrow_exception(exception());
    return true;
  }

 private:
  const PointPtr point_;
  const std::shared_ptr<Outcome> outcome_;
  const int device_;
  const bool host_waits_;
  const Tensors results_;
};

/// The collectives that the backends of this process have started, in the order of the calls.
struct Starts {
  std::mutex mutex;
  std::vector<std::string> entries;
  int backends = 0;

  static Starts& get() {
    static auto* starts = new Starts();
    return *starts;
  }
};

class StreamBackend final : public c10d::Backend {
 public:
  StreamBackend(c10::intrusive_ptr<c10d::Backend> gloo, bool host_waits)
      : c10d::Backend(gloo->getRank(), gloo->getSize()), gloo_(std::move(gloo)), host_waits_(host_waits) {
    const std::lock_guard lock(Starts::get().mutex);
    number_ = Starts::get().backends++;
  }

  const std::string getBackendName() const override { return host_waits_ ? "gloo" : "simulated"; }
  void abort() override {
    {
      const std::lock_guard lock(abort_mutex_);
      aborted_ = true;
    }
    abort_signal_.notify_all();
    gloo_->abort();
    if (stream_ == nullptr) return;
    // As NCCL does when it ends its kernels; it does not wait for kernels that have not begun.
    const auto ended = Machine::get().record(*stream_);
    if (ended->wait_for(kUntilKernelsEnd)) Machine::get().wait(ended);
  }
  void eagerConnectSingleDevice(at::Device) override { note_start("connect"); }

  WorkPtr broadcast(Tensors& tensors, const c10d::BroadcastOptions& options) override {
    return run("broadcast", tensors, tensors,
               [=, this](Tensors, Tensors out) { return gloo_->broadcast(out, options); });
  }
  WorkPtr allreduce(Tensors& tensors, const c10d::AllreduceOptions& options) override {
    return run("allreduce", tensors, tensors,
               [=, this](Tensors, Tensors out) { return gloo_->allreduce(out, options); });
  }
  WorkPtr _allgather_base(at::Tensor& whole, at::Tensor& shard, const c10d::AllgatherOptions& options) override {
    return run("allgather", {shard}, {whole},
               [=, this](Tensors in, Tensors out) { return gloo_->_allgather_base(out[0], in[0], options); });
  }
  WorkPtr _reduce_scatter_base(at::Tensor& shard, at::Tensor& whole,
                               const c10d::ReduceScatterOptions& options) override {
    return run("reduce_scatter", {whole}, {shard},
               [=, this](Tensors in, Tensors out) { return gloo_->_reduce_scatter_base(out[0], in[0], options); });
  }
  WorkPtr alltoall_base(at::Tensor& to, at::Tensor& from, std::vector<int64_t>& to_sizes,
                        std::vector<int64_t>& from_sizes, const c10d::AllToAllOptions& options) override {
    // Ranks may send different numbers of bytes if they give the sizes of parts.
    const std::string call = to_sizes.empty() ? sized("alltoall", from) : "alltoall of parts";
    return run_call(call, "alltoall", {from}, {to}, [=, this](Tensors in, Tensors out) mutable {
      return gloo_->alltoall_base(out[0], in[0], to_sizes, from_sizes, options);
    });
  }
  WorkPtr barrier(const c10d::BarrierOptions& options) override { return gloo_->barrier(options); }

 private:
  static std::string sized(const std::string& name, const at::Tensor& in) {
    return name + " of " + std::to_string(in.nbytes()) + " bytes";
  }

  template <typename Start>
  WorkPtr run(const std::string& name, const Tensors& in, const Tensors& out, Start start) {
    return run_call(sized(name, in[0]), name, in, out, std::move(start));
  }

  /// `call`: the same on all ranks.
  template <typename Start>
  WorkPtr run_call(const std::string& call, const std::string& name, const Tensors& in, const Tensors& out,
                   Start start) {
    const int device = out[0].device().index();
    note_start(call);
    std::vector<Use> uses;
    Tensors inside_in;
    Tensors inside_out;
    for (const auto& tensor : in) {
      uses.push_back(use_of(tensor, false));
      inside_in.push_back(inside_view(tensor, device));
    }
    for (const auto& tensor : out) {
      uses.push_back(use_of(tensor, true));
      inside_out.push_back(inside_view(tensor, device));
    }
    auto& machine = Machine::get();
    if (stream_ == nullptr) stream_ = &machine.stream_of_pool(device);
    machine.block(*stream_, machine.record(current_stream(device)));
    auto outcome = std::make_shared<Outcome>();
    machine.launch(*stream_, name, uses, [=, this]() mutable {
      try {
        meet(call);
        start(inside_in, inside_out)->wait();
      } catch (...) {
        const std::lock_guard lock(outcome->mutex);
        outcome->error = std::current_exception();
      }
    });
    return c10::make_intrusive<StreamWork>(machine.record(*stream_), outcome, device, host_waits_, out);
  }

  /// Behaves like NCCL's kernels, which wait for each other until they are aborted if the calls of ranks differ. Gloo's
  /// threads would end the process instead.
  void meet(const std::string& call) {
    const auto mine = at::full({1}, static_cast<std::int64_t>(std::hash<std::string>()(call)), at::kLong);
    auto all = at::empty({getSize()}, mine.options());
    auto shard = mine;
    gloo_->_allgather_base(all, shard, {})->wait();
    if (all.eq(mine).all().item<bool>()) return;
    std::unique_lock lock(abort_mutex_);
    if (!abort_signal_.wait_for(lock, kLongestWait, [this] { return aborted_; })) {
      throw std::runtime_error("the simulated device: ranks called different collectives, and were not aborted");
    }
    throw std::runtime_error("the simulated device: aborted");
  }

  void note_start(const std::string& what) const {
    const std::lock_guard lock(Starts::get().mutex);
    Starts::get().entries.push_back("backend " + std::to_string(number_) + ": " + what);
  }

  static constexpr std::chrono::seconds kLongestWait{60};
  static constexpr std::chrono::seconds kUntilKernelsEnd{2};

  const c10::intrusive_ptr<c10d::Backend> gloo_;
  const bool host_waits_;
  std::mutex abort_mutex_;
  std::condition_variable abort_signal_;
  bool aborted_ = false;
  int number_ = 0;  ///< in the order in which backends were made
  Stream* stream_ = nullptr;
};

}  // namespace

std::vector<std::string> take_starts() {
  const std::lock_guard lock(Starts::get().mutex);
  return std::exchange(Starts::get().entries, {});
}

c10::intrusive_ptr<c10d::Backend> make_backend(const c10::intrusive_ptr<c10d::Backend>& gloo, bool host_waits) {
  return c10::make_intrusive<StreamBackend>(gloo, host_waits);
}

}  // namespace simulated_device
