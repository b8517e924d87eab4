/// \file
/// Metrics to CSV files: the section csv_monitor.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace zeropage {

/// One value of a metric, at so many samples.
struct Event {
  std::string name;  ///< "Valid/loss"
  double value = 0.0;
  std::int64_t samples = 0;
};

/// A file output_path/job_name/Train_Samples_lr.csv for each metric, here Train/Samples/lr, with lines `samples,value`. A run that goes on
/// in the same folder appends. Rank 0 writes; every value is handed to the system at once.
class Monitor {
 public:
  Monitor() = default;  ///< writes nothing
  /// Errors: IoError.
  explicit Monitor(std::string folder);

  bool enabled() const { return !folder_.empty(); }  ///< whether this rank writes anything

  /// Cost: a system call for each event. Errors: IoError.
  void write_events(const std::vector<Event>& events);

 private:
  std::string folder_;
};

}  // namespace zeropage
