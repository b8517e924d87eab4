// The store's side of bench/nvme.py: a store whose file fio also uses. Reads commands, one word per line (read, write,
// mixed), and answers each with "bytes seconds cpu_seconds"; the answer to "pipeline" is the seconds of reading,
// updating and writing alone, of reading with writing, and of all three. The first line of output is the path under
// which other programs can open its file.
#include <fmt/format.h>
#include <unistd.h>

#include <cstdio>
#include <exception>
#include <iostream>
#include <optional>
#include <string>

#include "bench/nvme_pipeline.h"
#include "zeropage/io/measure_store.h"

int main(int argc, char** argv) {
  using zeropage::io::Traffic;
  if (argc != 5) {
    fmt::print(stderr, "usage: {} FOLDER BLOCK_BYTES DEPTH EXTENTS\n", argv[0]);
    return 64;
  }
  try {
    zeropage::io::StoreOptions options;
    options.folders = {argv[1]};
    options.block_bytes = std::stoll(argv[2]);
    options.queue_depth = std::stoi(argv[3]);
    zeropage::io::MeasuredStore measured(options, std::stoi(argv[4]));
    fmt::print("/proc/{}/fd/{} {}\n", getpid(), measured.store().descriptor(0), measured.store().how());
    std::fflush(stdout);
    std::optional<zeropage::bench::Pipeline> pipeline;
    for (std::string word; std::getline(std::cin, word);) {
      if (word == "pipeline") {
        if (!pipeline) pipeline.emplace(options, std::stoi(argv[4]));
        fmt::print("{} {} {} {} {}\n", pipeline->pass(true, false, false), pipeline->pass(false, true, false),
                   pipeline->pass(false, false, true), pipeline->pass(true, false, true),
                   pipeline->pass(true, true, true));
        std::fflush(stdout);
        continue;
      }
      const auto rate = measured.run(word == "read"    ? Traffic::kRead
                                     : word == "write" ? Traffic::kWrite
                                                       : Traffic::kMixed);
      fmt::print("{} {} {}\n", rate.bytes, rate.seconds, rate.cpu_seconds);
      std::fflush(stdout);
    }
  } catch (const std::exception& error) {
    fmt::print(stderr, "{}\n", error.what());
    return 1;
  }
  return 0;
}
