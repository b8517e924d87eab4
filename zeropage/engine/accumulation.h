/// \file
/// The position of an engine in an accumulation window. A window is the sequence of micro steps whose gradients one
/// update uses:
///
///   1. A window begins when the engine is made, after each update (applied or skipped), after a loaded checkpoint, and
///      after zero_grad(), which drops the gradients of the window it interrupts.
///   2. Each step() ends a micro step. The micro step with which the window reaches the current number of accumulation
///      steps is its boundary.
///   3. force(true) makes the next micro step a boundary, force(false) none, until force(nullopt). A window that ended
///      early does not shorten the one after it.
///   4. A new number of accumulation steps applies immediately: a window that is already as long, or longer, ends with
///      its next micro step.
///   5. If micro steps are not counted (managed_gradient_accumulation false), every step() is a boundary, and each
///      backward before it is a micro step.
///
/// The engine owns it, informs the reducer, and answers Python's queries.
#pragma once

#include <cstdint>
#include <optional>

namespace zeropage::engine {

class AccumulationWindow {
 public:
  /// All at least 1. `micro_batch_size`: samples of one rank in one micro step. `counted`: see 5.
  AccumulationWindow(std::int64_t steps, std::int64_t micro_batch_size, int ranks, bool counted = true);

  /// Micro steps of a window. Errors of the setters: UsageError for less than 1.
  std::int64_t steps() const { return steps_; }
  void set_steps(std::int64_t steps);
  std::int64_t micro_batch_size() const { return micro_batch_size_; }
  void set_micro_batch_size(std::int64_t samples);

  /// Changes the number of micro steps so that a window has this many samples of all ranks. Errors: ConfigError unless
  /// it is a multiple of the ranks' micro batches.
  void set_samples_of_update(std::int64_t samples);

  /// nullopt: boundaries are found by counting micro steps.
  void force(std::optional<bool> boundary) { forced_ = boundary; }

  /// Whether the next step() ends the window.
  bool at_boundary() const { return forced_.value_or(!counted_ || ended_ + 1 >= steps_); }

  /// Whether nothing has happened in this window yet.
  bool is_new() const { return ended_ == 0 && backwards_ == 0; }

  /// Micro steps of this window that have ended.
  std::int64_t ended() const { return ended_; }

  /// A backward has run since the last step().
  bool had_backward() const { return backwards_ > 0; }
  void note_backward() { ++backwards_; }

  /// step() was called.
  void end_micro_step();

  /// Ends the window after an update, applied or skipped; the next one begins.
  void end();

  /// Starts the window again without an update.
  void restart();

  /// Samples of a window of full length.
  std::int64_t samples_of_update() const { return steps_ * micro_batch_size_ * ranks_; }

  /// Samples of all ranks that updates have used or skipped.
  std::int64_t samples() const { return samples_; }
  void set_samples(std::int64_t samples) { samples_ = samples; }

  /// Calls of step(), in all windows; without counting: backwards before them.
  std::int64_t micro_steps() const { return micro_steps_; }
  void set_micro_steps(std::int64_t micro_steps) { micro_steps_ = micro_steps; }

 private:
  std::int64_t steps_;
  std::int64_t micro_batch_size_;
  int ranks_;
  std::optional<bool> forced_;
  bool counted_;
  std::int64_t ended_ = 0;
  std::int64_t window_samples_ = 0;
  std::int64_t backwards_ = 0;  ///< since the last step()
  std::int64_t samples_ = 0;
  std::int64_t micro_steps_ = 0;
};

}  // namespace zeropage::engine
