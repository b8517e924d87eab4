/// \file
/// Writes metrics to CSV files: the section csv_monitor.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

namespace zeropage::report {
class AppendFile;
}

namespace zeropage {

/// One value of a metric, with the number of samples.
struct Event {
  std::string name;  ///< "Valid/loss"
  double value = 0.0;
  std::int64_t samples = 0;
};

/// A file output_path/job_name/Train_Samples_lr.csv for each metric, here Train/Samples/lr, with lines `samples,value`.
/// A resumed run appends to the files of the same folder. Rank 0 writes, and every value is written at once.
class Monitor {
 public:
  Monitor() = default;  ///< writes nothing
  /// Errors: IoError.
  explicit Monitor(std::string folder);

  bool enabled() const { return !folder_.empty(); }  ///< whether this rank writes anything

  /// Cost: two system calls for each event. A value that cannot be written does not end the training; there is one
  /// warning for each file.
  void write_events(const std::vector<Event>& events);

 private:
  std::shared_ptr<report::AppendFile> open(
      const std::string& name) const;  ///< null, and a warning: it cannot be opened

  std::string folder_;
  std::map<std::string, std::shared_ptr<report::AppendFile>> files_;  ///< by the name of the metric
};

}  // namespace zeropage
