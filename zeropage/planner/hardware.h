/// \file
/// The performance of the devices, hosts and links of a job.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace zeropage::planner {

/// Figures that programs reach in practice. Rates are in bytes per second, in one direction.
struct Hardware {
  std::string name;
  std::int64_t device_bytes = 0;  ///< memory of one device
  double flops = 0;               ///< of one device, dense, 16 bit
  double device_memory_rate = 0;  ///< of one device
  double device_link_rate = 0;    ///< between devices of a host, each
  double host_link_rate = 0;      ///< between a device and its host
  double network_rate = 0;        ///< of a host, all its adapters
  std::int64_t host_bytes = 0;    ///< memory of a host
  double host_memory_rate = 0;    ///< of a host
  std::int64_t disk_bytes = 0;    ///< of a host
  double disk_read_rate = 0;      ///< of a host, all its disks
  double disk_write_rate = 0;     ///< of a host, all its disks
  double device_latency_s = 0;    ///< of one hop of a collective inside a host
  double network_latency_s = 0;   ///< of one hop between hosts
  double overlap = 1;             ///< share of a transfer that does not slow down a computation at the same time
  bool is_cpu = false;            ///< the devices are CPU cores: ranks of several hosts gather and reduce host by host
};

/// "H100", "H200", "A100" (80 GB), "A100-40", "V100", "4090"; case does not count. Errors: ConfigError with the known
/// names.
Hardware hardware_preset(std::string_view name);

std::vector<std::string> hardware_preset_names();

/// A preset, or a file "*.json" with an object of all figure_names (numbers in bytes, bytes per second, seconds, or
/// strings such as "25GB/s"), a "name", and optionally a "device", "cpu" or another type, as `zeropage plan --measure`
/// writes it. Errors: ConfigError, IoError.
Hardware read_hardware(const std::string& preset_or_path);

/// Dense 16-bit operations per second of the presets' data sheets, by name.
std::map<std::string, double> data_sheet_flops();

/// Replaces one figure by its name among figure_names, such as "device_memory" by "80GB", "network_latency" by "14us"
/// or "overlap" by "0.8". Errors: ConfigError for another name or a wrong unit.
void set_figure(Hardware& hardware, std::string_view name, std::string_view value);

/// In the order of Hardware.
std::vector<std::string> figure_names();

/// One line about a figure, for --help.
std::string figure_help(std::string_view name);

}  // namespace zeropage::planner
