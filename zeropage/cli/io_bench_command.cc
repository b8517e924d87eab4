#include "zeropage/cli/io_bench_command.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cmath>

#include "zeropage/cli/output_file.h"
#include "zeropage/io/measure_store.h"

namespace zeropage::cli {
namespace {

constexpr int kBuffers = 4;

/// Combinations this close to the fastest count as equal. The best of them is the one with the fewest bytes in running
/// requests.
constexpr double kAsGood = 0.97;

/// The best figures of all rounds.
struct Measured {
  std::int64_t block_bytes = 0;
  int depth = 0;
  double read = 0.0;
  double write = 0.0;
  double mixed = 0.0;
  double cpu_s_per_gb = INFINITY;

  std::int64_t under_way_bytes() const { return block_bytes * depth; }
};

io::StoreOptions options_of(const IoBenchCommand& command, const Measured& combination) {
  io::StoreOptions options;
  options.folders = command.folders;
  options.owner = "io-bench";
  options.block_bytes = combination.block_bytes;
  options.queue_depth = combination.depth;
  options.buffer_count = kBuffers;
  return options;
}

void measure(const IoBenchCommand& command, Measured& combination) {
  const int extents =
      std::max<int>(kBuffers, static_cast<int>(command.size_mib * (1LL << 20) / io::MeasuredStore::kExtentBytes));
  io::MeasuredStore store(options_of(command, combination), extents);
  for (int round = 0; round < command.rounds; ++round) {
    combination.write = std::max(combination.write, store.run(io::Traffic::kWrite).gb_per_s());
    combination.read = std::max(combination.read, store.run(io::Traffic::kRead).gb_per_s());
    const io::Rate mixed = store.run(io::Traffic::kMixed);
    combination.mixed = std::max(combination.mixed, mixed.gb_per_s());
    combination.cpu_s_per_gb = std::min(combination.cpu_s_per_gb, mixed.cpu_s_per_gb());
  }
}

std::vector<Measured> combinations(bool quick) {
  std::vector<Measured> all;
  const std::vector<int> kibs = quick ? std::vector<int>{256, 1024} : std::vector<int>{256, 512, 1024, 2048, 4096};
  const std::vector<int> depths = quick ? std::vector<int>{4, 16} : std::vector<int>{4, 8, 16, 32};
  for (const int kib : kibs) {
    for (const int depth : depths) all.push_back({.block_bytes = kib * 1024LL, .depth = depth});
  }
  return all;
}

std::string bar(double share) {
  std::string text;
  for (int i = 0; i < static_cast<int>(std::lround(30 * share)); ++i) text += "\u2588";
  return text;
}

std::string aio_section(const Measured& best) {
  return fmt::format("\"aio\": {{\"block_size\": {}, \"queue_depth\": {}}}", best.block_bytes, best.depth);
}

}  // namespace

CLI::App* add_io_bench_command(CLI::App& app, IoBenchCommand& command) {
  CLI::App* bench = app.add_subcommand(
      "io-bench", "Measure a drive with the requests of offload to NVMe, and find the best settings");
  bench->prefix_command(
      false);  // otherwise inherited from the launcher, which passes all later arguments to the script
  bench->add_option("PATH", command.folders, "Folders on the drives; several are striped")->required();
  bench->add_option("--size_mib", command.size_mib, "MiB that one measurement moves; it reserves twice as much")
      ->check(CLI::Range(64, 1 << 20))
      ->type_name("N");
  bench->add_option("--rounds", command.rounds, "Measurements of each kind; the best counts")
      ->check(CLI::Range(1, 1000))
      ->type_name("N");
  bench->add_flag("--quick", command.quick, "Four combinations instead of twenty");
  bench->add_option("--write", command.write, "Write a configuration with the best settings to this new file")
      ->type_name("FILE");
  return bench;
}

void run_io_bench(const IoBenchCommand& command, const std::function<void(const std::string&)>& print) {
  if (!command.write.empty()) require_new_file("--write", command.write);
  std::vector<Measured> all = combinations(command.quick);
  {
    const io::Store probe(options_of(command, all[0]), {{"probe", 1}});
    print(fmt::format("{}: {}\n", fmt::join(command.folders, ", "), probe.how()));
    for (const std::string& note : probe.notes()) print(note + "\n");
  }
  print("\n   block  depth    read   write   mixed GB/s   CPU s/GB\n");
  for (Measured& now : all) {
    measure(command, now);
    print(fmt::format("{:4} KiB {:6} {:7.2f} {:7.2f} {:7.2f} {:14.3f}\n", now.block_bytes / 1024, now.depth, now.read,
                      now.write, now.mixed, now.cpu_s_per_gb));
  }
  const double fastest = std::ranges::max_element(all, {}, &Measured::mixed)->mixed;
  print("\n   block  depth   mixed: pages are read while others are written, as in a step\n");
  for (const Measured& one : all) {
    print(fmt::format("{:4} KiB {:6}   {} {:.2f}\n", one.block_bytes / 1024, one.depth, bar(one.mixed / fastest),
                      one.mixed));
  }
  std::erase_if(all, [&](const Measured& one) { return one.mixed < kAsGood * fastest; });
  const Measured best = *std::ranges::min_element(all, {}, &Measured::under_way_bytes);
  print(fmt::format("\nbest (the fewest bytes in running requests within {:.0f} % of the fastest):\n\n  {}\n",
                    100 * (1 - kAsGood), aio_section(best)));
  if (command.write.empty()) return;
  write_new_file("--write", command.write,
                 fmt::format("{{\n  \"train_micro_batch_size_per_gpu\": 1,\n  {}\n}}\n", aio_section(best)));
  print(fmt::format("\nwritten to {}\n", command.write));
}

}  // namespace zeropage::cli
