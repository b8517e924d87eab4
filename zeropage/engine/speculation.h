/// \file
/// Updates of offloaded pages overlapped with the backward, before the global check of their step
/// (zeropage.speculation_bytes):
///
///   1. expect: before a backward that is followed by a step. The step will most likely have the current
///      hyperparameters, find only finite values and clip nothing.
///   2. queued: as soon as a page's sum is complete on this rank, the page is queued. A separate thread processes one
///      after the other: it waits until the sum is in its place, copies the old bits of the state to the undo log, and
///      updates the state. The new parameter is also written to the log, because the backward and peers still read the
///      old one.
///   3. retract: before the sum changes again (late gradients, another backward, zero_grad), and before a user's write
///      becomes part of the state, the old bits are restored.
///   4. close: when the step begins, no more pages are started. Pages in the queue are left to the update after the
///      global check.
///   5. settle: pages whose update agrees with the global check are kept, and `commit` writes each parameter to its
///      place in order. The others are restored, and the step updates them as if nothing had been started.
///
/// After a step with a different result, the next one waits for its global check, because clipping tends to persist; it
/// then has no wasted cost. Excluded are pages with anything on a drive, pages that users have written, pages with a
/// parameter without gradient on this rank, and unsharded pages on a device that are their own masters, because users'
/// writes to those are not detected. Pages that do not fit the log wait, too. An update that fails here is undone; the
/// step repeats it, and raises its error on every rank.
///
/// The data that the thread reads without a lock, and the reasons why it does not change meanwhile:
///
///   - The inputs of the update (`gradient_scale_` to `received_`): written by `begin` after stop_queue, and by `grow`,
///     between updates.
///   - The sum of the current page: the reducer calls `rollback` before it changes or frees a sum, which waits until
///     the page is not being updated. The sum was complete before the page was queued, under the lock.
///   - The parameter and the optimizer state of that page: ModelState calls back before a user's writes become part of
///     the state; the update, checkpoints and edits call `close`, `undo` or `rollback` before. Different pages may be
///     held by two threads (optimizer_state_store.h).
///   - The layout, and the tables of pages: they grow between updates, and in Engine::Impl::begin_training after
///     `wait`.
///   - The log and `used_bytes_`: used only by the thread, and by `begin` after stop_queue.
///
/// `ahead_` belongs to the thread while a page is being updated. validate, is_ahead and commit read it without the
/// lock: they run after `close`, when nothing is queued or being updated, and nothing can be queued before the next
/// `begin`.
///
/// Order of locks: the reducer's mutex, then this one. The thread holds neither during an update.
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
#include "zeropage/engine/page_update.h"
#include "zeropage/formula/model_state.h"
#include "zeropage/memory/device_buffer.h"
#include "zeropage/reduce/reducer.h"

namespace zeropage::engine {

class Speculation {
 public:
  /// The log counts as buffers of the host; with 0 bytes nothing is ever started, and there is no thread. Otherwise
  /// `reducer` and `state` report sums and writes to it from now on: it must be destroyed before them, when no backward
  /// runs.
  Speculation(const config::Config& config, ModelState& state, reduce::Reducer& reducer, UpdatePass& pass,
              c10::Device device, std::int64_t log_bytes, const std::shared_ptr<Ledger>& ledger);

  /// Call after parameters were added to the state, between updates.
  void grow() { received_.resize(state_.tensors().size(), true); }

  /// `divisor`: that of the update; `groups` and `steps`: before it.
  void begin(double divisor, const std::vector<config::OptimizerParams>& groups,
             const std::vector<std::int64_t>& steps);

  /// Returns the number of updates made since the previous step. Cost: waits for the update of one page.
  int close();

  /// Returns when all queued pages have been processed. For tests and measurements.
  void wait();

  /// Returns how many of them are kept.
  int validate(const UpdateInputs& inputs);

  /// Restores everything.
  void undo();

  /// Restores a page, before its sum or its state changes or is read; the step updates it.
  void rollback(int page);

  /// After `validate`: whether a page has been updated already; `commit` then finishes it.
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
    std::byte* parameter = nullptr;  ///< the new parameter
    std::string
        old_parameter;  ///< digest of the parameter from which it was computed; empty: writes to it are always detected
    std::vector<UpdateSegment> segments;  ///< the changed segments
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

  // The inputs of updates; set while the thread is idle.
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
  std::int64_t used_bytes_ = 0;  // bytes used in the log
  int begun_ = 0;                // updates started in this step
  std::jthread thread_;          // last: it ends before what it uses
};

/// The size of the log: zeropage.speculation_bytes. If that is absent, formula::default_undo_log_bytes if optimizer
/// state is offloaded from a device, and 0 if the device is the CPU, where the backward itself needs the processors. 0
/// for optimizers of two passes, and for updates on the device.
std::int64_t undo_log_bytes(const config::Config& config, const formula::ParameterCounts& counts,
                            const formula::StateOptions& options, c10::Device device);

}  // namespace zeropage::engine
