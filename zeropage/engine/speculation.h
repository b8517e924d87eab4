/// \file
/// Updates of offloaded pages that go on overlapped with the backward, before the global check of their step
/// (zeropage.speculation_bytes):
///
///   1. expect: before a backward that a step follows. The step will most likely have the hyperparameters of now, find
///      everything finite and clip nothing.
///   2. queued: as soon as a page's sum stands on this rank, its page is queued. A thread of its own takes one after
///      the other: waits until the sum is in its place, copies the old bits of the state to the undo log, and updates
///      the state. The new parameter goes to the log, too, and not to its place, where the backward and peers still
///      read.
///   3. retract: before the sum changes again (gradients that come late, another backward, zero_grad), and before a
///      user's write becomes part of the state, the old bits are put back.
///   4. close: when the step begins, no more pages do. What waits in the queue is left to the update after the global
///      check.
///   5. settle: pages whose update is the one that the global check asks for stand, and `commit` puts each parameter in
///      its place at its turn. The others are put back, and the step is as if nothing had begun.
///
/// After a step that went another way the next one waits for its global check: clipping tends to last, and costs
/// nothing then. Left out are pages of which anything lives on a drive, which users have written, of which some
/// parameter got no gradient on this rank, or that are whole on a device and their own masters: users may write those
/// unnoticed. What does not fit the log waits, too. An update that fails here leaves nothing behind; the step makes it
/// again, and raises what there is to raise on every rank.
///
/// What the thread reads without a lock, and why nothing changes it meanwhile:
///
///   - The inputs of the update (`gradient_scale_` to `received_`): written by `begin` after stop_queue, and by `grow`,
///     between updates.
///   - The sum of the page at work: the reducer says before it changes or frees a sum (`rollback`, which waits until
///     the page is not at work). The sum was complete before the page was queued, under the lock.
///   - The parameter and the optimizer state of that page: ModelState says before it takes in what a user wrote; the
///     update, checkpoints and edits call `close`, `undo` or `rollback` before. Different pages may be held by two
///     threads (optimizer_state_store.h).
///   - The layout, and the tables of pages: they grow between updates, and in Engine::Impl::begin_training after
///     `wait`.
///   - The log and `used_bytes_`: only the thread, and `begin` after stop_queue.
///
/// `ahead_` is the thread's while a page is at work. validate, is_ahead and commit read it without the lock: they run
/// after `close`, when nothing is queued or at work, and nothing can be queued before the next `begin`.
///
/// Order of locks: the reducer's mutex, then this one. The thread holds neither while it works.
#pragma once

#include "zeropage/memory/torch_config.h"

#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>
#include <optional>
#include <stop_token>
#include <string>
#include <thread>
#include <vector>

#include <c10/core/Event.h>

#include "zeropage/base/ledger.h"
#include "zeropage/config/config.h"
#include "zeropage/engine/model_state.h"
#include "zeropage/engine/update.h"
#include "zeropage/formula/model_state.h"
#include "zeropage/memory/device_buffer.h"
#include "zeropage/reduce/reducer.h"

namespace zeropage::engine {

class Speculation {
 public:
  /// The log counts as buffers of the host; of 0 bytes nothing ever begins, and there is no thread. Else `reducer` and
  /// `state` tell it of sums and writes from now on: to be destroyed before them, when no backward runs.
  Speculation(const config::Config& config, ModelState& state, reduce::Reducer& reducer, UpdatePass& pass,
              c10::Device device, std::int64_t log_bytes, const std::shared_ptr<Ledger>& ledger);

  /// The state has got more parameters. Between updates.
  void grow() { received_.resize(state_.tensors().size(), true); }

  /// `divisor` as of the update, `groups` and `steps` before it.
  void begin(double divisor, const std::vector<config::OptimizerParams>& groups,
             const std::vector<std::int64_t>& steps);

  /// How many updates were made since the step before. Cost: waits for that of one page.
  int close();

  /// Returns when everything offered so far has had its turn. For tests and measurements.
  void wait();

  /// Returns how many of them stand.
  int validate(const UpdateInputs& inputs);

  /// Puts everything back.
  void undo();

  /// Puts a page back, before its sum or its state changes or is read; the step updates it.
  void rollback(int page);

  /// After `validate`: whether a page has its update already; then `commit` is its turn.
  bool is_ahead(int page) const;
  void commit(int page);

 private:
  static constexpr int kNoPage = -1;

  struct QueuedPage {
    int page = 0;
    std::optional<c10::Event> ready;  ///< of the sum; absent on the CPU
  };
  struct Ahead {
    int page = 0;
    std::byte* old_state = nullptr;
    std::byte* parameter = nullptr;  ///< the new one
    std::string old_parameter;       ///< digest of what it was made from; empty: nobody writes that unnoticed
    std::vector<Segment> segments;   ///< what is changed
  };

  void enqueue(int page);
  bool may_begin(int page) const;
  bool is_still_valid(const Ahead& ahead, const UpdateInputs& inputs) const;
  void run(const std::stop_token& stop);
  std::optional<Ahead> update_ahead(const QueuedPage& queued);
  std::unique_lock<std::mutex> stop_queue();
  void put_back(const Ahead& ahead);

  const config::Config& config_;
  ModelState& state_;
  const reduce::Reducer& reducer_;
  UpdatePass& pass_;
  c10::Device device_;
  memory::DeviceBuffer log_;
  std::optional<c10::Event> parameters_copied_;  // the log; absent on the CPU

  // What pages are updated by; written while the thread is idle.
  float gradient_scale_ = 1.0F;
  std::vector<config::OptimizerParams> groups_;
  std::vector<std::int64_t> steps_;
  std::vector<bool> received_;
  bool last_step_as_expected_ = true;

  std::mutex mutex_;
  std::condition_variable_any changed_;
  bool open_ = false;
  int page_at_work_ = kNoPage;
  std::deque<QueuedPage> queue_;
  std::vector<Ahead> ahead_;
  std::int64_t used_bytes_ = 0;  // of the log
  int begun_ = 0;                // updates of this step
  std::jthread thread_;          // last: it ends before what it uses
};

/// Of the log: zeropage.speculation_bytes. Where that is absent, formula::default_undo_log_bytes if optimizer state is
/// offloaded from a device, and 0 where the device is the CPU: there the backward needs the processors itself. 0 for
/// optimizers of two passes, and for updates on the device.
std::int64_t undo_log_bytes(const config::Config& config, const formula::ParameterCounts& counts,
                            const formula::StateOptions& options, c10::Device device);

}  // namespace zeropage::engine
