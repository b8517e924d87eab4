#include "zeropage/planner/hardware.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <charconv>
#include <span>

#include "zeropage/base/error.h"
#include "zeropage/base/json_text.h"
#include "zeropage/base/letter_case.h"
#include "zeropage/planner/files.h"

namespace zeropage::planner {
namespace {

/// Figures of data sheets: teraflops, GiB, and GB/s in one direction.
struct DataSheet {
  const char* name;
  double device_gib;  ///< as the driver reports it, a little less than on the sheet
  double teraflops;   ///< dense bf16 (V100: fp16)
  double device_memory, device_link, host_link, network;
  double host_gib, host_memory;
  double disk_gb, disk_read, disk_write;
  double device_latency_us;
};

/// The share of a data sheet's rates that programs reach: 790 of 989 TFLOPS were measured in bf16 on an H200. About 360
/// of 450 GB/s are usual for NVLink 4, and 25 of 32 GB/s for PCIe 4.
constexpr double kReached = 0.8;

// Latencies of one hop of a ring, as NCCL's tuner assumes them (src/graph/tuning.cc, protocol "simple"): NVLink 3.4 us,
// PCIe 5.7 us, network 14 us.
constexpr double kNvlinkUs = 3.4;
constexpr double kPcieUs = 5.7;
constexpr double kNetworkUs = 14;

// Devices: NVIDIA's data sheets of each product (SXM where there is one). Hosts: the data sheets of DGX H100/H200 (2
// TB, 2 x 8 channels of DDR5-4800, 8 x 400 Gb/s, 8 x 3.84 TB NVMe), DGX A100 (2 x 8 channels of DDR4-3200, 8 x 200
// Gb/s), DGX-2 (1.5 TB, 8 x 100 Gb/s; disks at 28 GB/s in ZeRO-Infinity, arXiv 2104.07857). 4090: devices cannot copy
// to each other directly, only through host memory; a workstation with 128 GiB of DDR5 on two channels, 10 Gb/s, and
// one PCIe 4 drive.
constexpr DataSheet kSheets[] = {
    {"H100", 79.1, 989, 3350, 450, 64, 400, 2048, 614, 30'720, 52, 28, kNvlinkUs},
    {"H200", 139.8, 989, 4800, 450, 64, 400, 2048, 614, 30'720, 52, 28, kNvlinkUs},
    {"A100", 79.1, 312, 2039, 300, 32, 200, 2048, 410, 30'720, 52, 28, kNvlinkUs},
    {"A100-40", 39.4, 312, 1555, 300, 32, 200, 1024, 410, 15'360, 26, 14, kNvlinkUs},
    {"V100", 31.7, 125, 900, 150, 16, 100, 1536, 256, 30'720, 28, 16, kNvlinkUs},
    {"4090", 23.5, 165, 1008, 16, 32, 1.25, 128, 90, 2'000, 7, 5, kPcieUs},
};

constexpr double kGib = 1024.0 * 1024 * 1024;

struct Unit {
  std::string_view name;
  double factor;
};

constexpr Unit kBytes[] = {{"", 1},       {"b", 1},
                           {"kb", 1e3},   {"mb", 1e6},
                           {"gb", 1e9},   {"tb", 1e12},
                           {"kib", 1024}, {"mib", 1024.0 * 1024},
                           {"gib", kGib}, {"tib", 1024 * kGib}};
constexpr Unit kSeconds[] = {{"", 1}, {"s", 1}, {"ms", 1e-3}, {"us", 1e-6}, {"ns", 1e-9}};
constexpr Unit kShare[] = {{"", 1}, {"%", 0.01}};

/// The units and the range of a figure.
struct Quantity {
  std::span<const Unit> units;
  double smallest;
  double largest;
  const char* example;
};

constexpr Quantity kSize{kBytes, 1e-9, 1e18, "a size such as 80GB, 80GiB or 25GB/s"};
constexpr Quantity kDuration{kSeconds, 0, 1e6, "a time such as 14us"};
constexpr Quantity kPart{kShare, 0, 1, "a share from 0 to 1"};

/// A figure that users can give: a size, or a number.
struct Figure {
  std::string_view name;
  const char* help;
  std::int64_t Hardware::*size = nullptr;
  double Hardware::*number = nullptr;
  const Quantity& quantity = kSize;
};

constexpr Figure kFigures[] = {
    {"device_memory", "Memory of a device", &Hardware::device_bytes},
    {"flops", "Operations of a device per second", nullptr, &Hardware::flops},
    {"device_memory_rate", "Bytes per second of a device's memory", nullptr, &Hardware::device_memory_rate},
    {"device_link_rate", "Bytes per second between two devices of a host", nullptr, &Hardware::device_link_rate},
    {"host_link_rate", "Bytes per second between a device and its host", nullptr, &Hardware::host_link_rate},
    {"network_rate", "Bytes per second between a host and the other hosts", nullptr, &Hardware::network_rate},
    {"host_memory", "Memory of a host", &Hardware::host_bytes},
    {"host_memory_rate", "Bytes per second of a host's memory", nullptr, &Hardware::host_memory_rate},
    {"disk", "Size of a host's disk", &Hardware::disk_bytes},
    {"disk_read_rate", "Bytes per second that a host's disk reads", nullptr, &Hardware::disk_read_rate},
    {"disk_write_rate", "Bytes per second that a host's disk writes", nullptr, &Hardware::disk_write_rate},
    {"device_latency", "Time of one hop of a message between devices of a host", nullptr, &Hardware::device_latency_s,
     kDuration},
    {"network_latency", "Time of one hop of a message between hosts", nullptr, &Hardware::network_latency_s, kDuration},
    {"overlap", "Share of a transfer that does not slow down computation at the same time", nullptr, &Hardware::overlap,
     kPart},
};

/// "25GB/s" as bytes (per second), "14us" as seconds. Errors: ConfigError that names the figure.
double parse(std::string_view text, const Figure& figure) {
  const Quantity& quantity = figure.quantity;
  std::string lower = lower_case(text);
  if (lower.ends_with("/s")) lower.resize(lower.size() - 2);
  double number = 0;
  const auto [end, error] = std::from_chars(lower.data(), lower.data() + lower.size(), number);
  const std::string_view unit(end, lower.data() + lower.size() - end);
  const auto found = std::ranges::find(quantity.units, unit, &Unit::name);
  const bool is_known = error == std::errc() && found != quantity.units.end();
  const double value = is_known ? number * found->factor : -1;
  if (!(value >= quantity.smallest && value <= quantity.largest)) {
    throw ConfigError(fmt::format("{}: expected {}, got {}", figure.name, quantity.example, json::quote(text)));
  }
  return value;
}

Hardware read_file_of_figures(const std::string& path) {
  constexpr std::uintmax_t kLargestFile = 1 << 20;
  const json::Node root = json::parse(read_file(path, kLargestFile), path);
  Hardware hardware;
  std::vector<std::string> missing = figure_names();
  for (const json::Member& member : root.members) {
    const bool is_text = member.value.kind == json::Kind::kString;
    if (member.name == "name" && is_text) {
      hardware.name = member.value.text;
    } else if (member.name == "device" && is_text) {
      hardware.is_cpu = member.value.text == "cpu";
    } else if (is_text || member.value.kind == json::Kind::kNumber) {
      set_figure(hardware, member.name, member.value.text);
      std::erase(missing, member.name);
    } else {
      throw ConfigError(fmt::format("{}:{}: {}: expected a number or a string, got {}", path, member.line, member.name,
                                    json::describe(member.value)));
    }
  }
  if (hardware.name.empty()) missing.emplace_back("name");
  if (!missing.empty()) throw ConfigError(fmt::format("{}: expected also {}", path, fmt::join(missing, ", ")));
  return hardware;
}

}  // namespace

std::map<std::string, double> data_sheet_flops() {
  std::map<std::string, double> flops;
  for (const auto& sheet : kSheets) flops[sheet.name] = sheet.teraflops * 1e12;
  return flops;
}

std::vector<std::string> hardware_preset_names() {
  std::vector<std::string> names;
  for (const DataSheet& sheet : kSheets) names.emplace_back(sheet.name);
  return names;
}

Hardware hardware_preset(std::string_view name) {
  const auto* found =
      std::ranges::find_if(kSheets, [&](const DataSheet& s) { return lower_case(s.name) == lower_case(name); });
  if (found == std::end(kSheets)) {
    throw ConfigError(
        fmt::format("device: expected one of {}, got {}; for others name a file of figures (docs/plan.md)",
                    fmt::join(hardware_preset_names(), ", "), json::quote(name)));
  }
  const DataSheet& sheet = *found;
  const auto rate = [](double gigabytes) { return kReached * gigabytes * 1e9; };
  Hardware hardware;
  hardware.name = sheet.name;
  hardware.device_bytes = static_cast<std::int64_t>(sheet.device_gib * kGib);
  hardware.flops = kReached * sheet.teraflops * 1e12;
  hardware.device_memory_rate = rate(sheet.device_memory);
  hardware.device_link_rate = rate(sheet.device_link);
  hardware.host_link_rate = rate(sheet.host_link);
  hardware.network_rate = rate(sheet.network);
  hardware.host_bytes = static_cast<std::int64_t>(sheet.host_gib * kGib);
  hardware.host_memory_rate = rate(sheet.host_memory);
  hardware.disk_bytes = static_cast<std::int64_t>(sheet.disk_gb * 1e9);
  hardware.disk_read_rate = rate(sheet.disk_read);
  hardware.disk_write_rate = rate(sheet.disk_write);
  hardware.device_latency_s = sheet.device_latency_us * 1e-6;
  hardware.network_latency_s = kNetworkUs * 1e-6;
  return hardware;
}

Hardware read_hardware(const std::string& preset_or_path) {
  return preset_or_path.ends_with(".json") ? read_file_of_figures(preset_or_path) : hardware_preset(preset_or_path);
}

std::string figure_help(std::string_view name) { return std::ranges::find(kFigures, name, &Figure::name)->help; }

std::vector<std::string> figure_names() {
  std::vector<std::string> names;
  for (const Figure& figure : kFigures) names.emplace_back(figure.name);
  return names;
}

void set_figure(Hardware& hardware, std::string_view name, std::string_view value) {
  const auto* found = std::ranges::find(kFigures, name, &Figure::name);
  if (found == std::end(kFigures)) {
    throw ConfigError(
        fmt::format("hardware: expected one of {}, got {}", fmt::join(figure_names(), ", "), json::quote(name)));
  }
  const double number = parse(value, *found);
  if (found->size) {
    hardware.*found->size = static_cast<std::int64_t>(number);
  } else {
    hardware.*found->number = number;
  }
}

}  // namespace zeropage::planner
