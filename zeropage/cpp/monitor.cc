#include "zeropage/cpp/monitor.h"

#include <fmt/format.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <utility>

#include "zeropage/base/error.h"

namespace zeropage {
namespace {

/// The path of a metric's file: separators and blanks become underscores.
std::filesystem::path file_of(const std::string& folder, std::string name) {
  for (char& c : name) {
    if (c == '/' || c == ' ') c = '_';
  }
  return std::filesystem::path(folder) / (name + ".csv");
}

}  // namespace

Monitor::Monitor(std::string folder) : folder_(std::move(folder)) {
  std::error_code error;
  std::filesystem::create_directories(folder_, error);
  if (error) throw IoError(fmt::format("cannot make {} (csv_monitor.output_path): {}", folder_, error.message()));
}

void Monitor::write_events(const std::vector<Event>& events) {
  if (!enabled()) return;
  for (const Event& event : events) {
    const auto path = file_of(folder_, event.name);
    std::error_code missing;
    const auto bytes = std::filesystem::file_size(path, missing);
    std::ofstream file(path, std::ios::app);
    if (missing || bytes == 0) file << "step," << event.name.substr(event.name.rfind('/') + 1) << "\n";
    file << fmt::format("{},{}\n", event.samples, event.value);
    if (!file.flush()) throw IoError(fmt::format("cannot write {}: {}", path.string(), std::strerror(errno)));
  }
}

}  // namespace zeropage
