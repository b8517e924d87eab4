#include "zeropage/plan/hardware.h"

#include <fmt/format.h>

#include <algorithm>
#include <cctype>
#include <charconv>

#include "zeropage/base/error.h"
#include "zeropage/base/json_text.h"

namespace zeropage::plan {
namespace {

/// As data sheets state them: teraflops, GiB, and GB/s in one direction.
struct DataSheet {
  const char* name;
  double device_gib;  ///< what the driver reports, a little less than on the sheet
  double teraflops;   ///< dense bf16 (V100: fp16)
  double device_memory, device_link, host_link, network;
  double host_gib, host_memory;
  double disk_gb, disk_read, disk_write;
};

/// Share of a data sheet's rates that programs reach: 790 of 989 TFLOPS were measured in bf16 on an H200, some 360 of 450 GB/s
/// are usual for NVLink 4 and 25 of 32 GB/s for PCIe 4.
constexpr double kReached = 0.8;

// Devices: NVIDIA's data sheets of each product (SXM where there is one). Hosts: the data sheets of DGX H100/H200 (2 TB, 2 x 8 channels of
// DDR5-4800, 8 x 400 Gb/s, 8 x 3.84 TB NVMe), DGX A100 (2 x 8 channels of DDR4-3200, 8 x 200 Gb/s), DGX-2 (1.5 TB, 8 x 100 Gb/s; disks
// at 28 GB/s in ZeRO-Infinity, arXiv 2104.07857). 4090: peers cannot reach each other and meet in host memory; a work station with
// 128 GiB of DDR5 on two channels, 10 Gb/s, and one PCIe 4 drive.
constexpr DataSheet kSheets[] = {
    {"H100", 79.1, 989, 3350, 450, 64, 400, 2048, 614, 30'720, 52, 28},
    {"H200", 139.8, 989, 4800, 450, 64, 400, 2048, 614, 30'720, 52, 28},
    {"A100", 79.1, 312, 2039, 300, 32, 200, 2048, 410, 30'720, 52, 28},
    {"A100-40", 39.4, 312, 1555, 300, 32, 200, 1024, 410, 15'360, 26, 14},
    {"V100", 31.7, 125, 900, 150, 16, 100, 1536, 256, 30'720, 28, 16},
    {"4090", 23.5, 165, 1008, 16, 32, 1.25, 128, 90, 2'000, 7, 5},
};

/// A figure that users can give: a size or a rate.
struct Figure {
  std::string_view name;
  std::int64_t Hardware::*size = nullptr;
  double Hardware::*rate = nullptr;
};

constexpr Figure kFigures[] = {
    {"device_memory", &Hardware::device_bytes},
    {"flops", nullptr, &Hardware::flops},
    {"device_memory_rate", nullptr, &Hardware::device_memory_rate},
    {"device_link_rate", nullptr, &Hardware::device_link_rate},
    {"host_link_rate", nullptr, &Hardware::host_link_rate},
    {"network_rate", nullptr, &Hardware::network_rate},
    {"host_memory", &Hardware::host_bytes},
    {"host_memory_rate", nullptr, &Hardware::host_memory_rate},
    {"disk", &Hardware::disk_bytes},
    {"disk_read_rate", nullptr, &Hardware::disk_read_rate},
    {"disk_write_rate", nullptr, &Hardware::disk_write_rate},
};

constexpr double kGib = 1024.0 * 1024 * 1024;

std::string folded(std::string_view text) {
  std::string lower(text);
  std::ranges::transform(lower, lower.begin(), [](unsigned char c) { return std::tolower(c); });
  return lower;
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
  const auto* found = std::ranges::find_if(kSheets, [&](const DataSheet& s) { return folded(s.name) == folded(name); });
  if (found == std::end(kSheets)) {
    throw ConfigError(fmt::format("device: expected one of {}, got {}; for others give its figures one by one",
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
  return hardware;
}

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
  const double number = parse_bytes(value, name);
  if (found->size) {
    hardware.*found->size = static_cast<std::int64_t>(number);
  } else {
    hardware.*found->rate = number;
  }
}

double parse_bytes(std::string_view text, std::string_view what) {
  constexpr std::pair<std::string_view, double> kUnits[] = {{"", 1},       {"b", 1},
                                                            {"kb", 1e3},   {"mb", 1e6},
                                                            {"gb", 1e9},   {"tb", 1e12},
                                                            {"kib", 1024}, {"mib", 1024.0 * 1024},
                                                            {"gib", kGib}, {"tib", 1024 * kGib}};
  std::string lower = folded(text);
  if (lower.ends_with("/s")) lower.resize(lower.size() - 2);
  double number = 0;
  const auto [end, error] = std::from_chars(lower.data(), lower.data() + lower.size(), number);
  const std::string_view unit(end, lower.data() + lower.size() - end);
  const auto* found = std::ranges::find(kUnits, unit, &std::pair<std::string_view, double>::first);
  if (error != std::errc() || found == std::end(kUnits) || !(number > 0 && number * found->second < 1e18)) {
    throw ConfigError(
        fmt::format("{}: expected a size such as 80GB, 80GiB or 25GB/s, got {}", what, json::quote(text)));
  }
  return number * found->second;
}

}  // namespace zeropage::plan
