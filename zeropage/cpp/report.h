/// \file
/// The progress line and the memory table of a run. Rank 0 prints them.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace zeropage {

class Engine;

/// Bytes of one rank. The formula is for the model state only: its frames and buffers are 0.
struct MemoryBytes {
  std::int64_t parameters = 0;
  std::int64_t gradients = 0;
  std::int64_t optimizer = 0;
  std::int64_t frames = 0;  ///< the peak
  std::int64_t buffers = 0;
};

/// Bytes of model state, counted and by the formula for this stage and for stage 0.
struct MemoryReport {
  int stage = 0;
  std::vector<MemoryBytes> ranks;
  std::vector<MemoryBytes> host;  ///< the bytes that are offloaded to the host
  MemoryBytes formula;
  MemoryBytes formula_host;
  MemoryBytes formula_stage_0;

  /// Aligned lines, one per kind, ending in a newline.
  std::string table() const;
};

/// Bytes of state that one rank has moved to and from drives, and the time in which it waited for them.
struct DiskTraffic {
  std::int64_t read_bytes = 0;
  std::int64_t written_bytes = 0;
  double waited_s = 0.0;
};

/// A progress line on stderr, on rank 0 only. Call `update` after each `engine.step()`.
class ProgressLine {
 public:
  /// total_steps: for the time left; 0: unknown. units_per_sample: 128 with unit "tokens" for sequences of 128 tokens.
  /// The engine must outlive this.
  ProgressLine(const Engine& engine, std::int64_t total_steps = 0, std::string unit = "samples",
               double units_per_sample = 1.0);
  ~ProgressLine();
  ProgressLine(ProgressLine&&) noexcept;

  /// Shows the last optimizer step, if there was one since the last call and the line is old enough.
  void update();

  /// Shows the last step and ends the line; the destructor does, too.
  void finish();

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace zeropage
