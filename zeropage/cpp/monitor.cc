#include "zeropage/cpp/monitor.h"

#include <fmt/format.h>

#include <filesystem>
#include <utility>

#include "zeropage/base/error.h"
#include "zeropage/base/log.h"
#include "zeropage/report/append_file.h"

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

std::shared_ptr<report::AppendFile> Monitor::open(const std::string& name) const {
  try {
    auto file = std::make_shared<report::AppendFile>(file_of(folder_, name), "step,");
    if (file->is_empty()) file->write(fmt::format("step,{}\n", name.substr(name.rfind('/') + 1)));
    return file;
  } catch (const IoError& error) {
    log_warn(error.what());
    return nullptr;
  }
}

void Monitor::write_events(const std::vector<Event>& events) {
  if (!enabled()) return;
  for (const Event& event : events) {
    const auto [place, is_new] = files_.try_emplace(event.name);
    if (is_new) place->second = open(event.name);
    if (place->second) place->second->write(fmt::format("{},{}\n", event.samples, event.value));
  }
}

}  // namespace zeropage
