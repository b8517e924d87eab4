#include "zeropage/checkpoint/find_checkpoint.h"

#include <fmt/format.h>

#include <sstream>

#include "zeropage/base/error.h"
#include "zeropage/base/log.h"
#include "zeropage/checkpoint/exchange.h"
#include "zeropage/checkpoint/save.h"
#include "zeropage/checkpoint/steps.h"

namespace zeropage::checkpoint {
namespace {

using Opened = std::unique_ptr<Checkpoint>;

/// Steps 1 and 2. `choose`: rank 0's choice of a path, or nullopt.
template <typename Choose>
Opened open_together(FileSystem& files, comm::Communicator& communicator, const std::string& failure, Choose choose) {
  Opened step;
  const bool decides = communicator.rank() == 0;
  const auto answers = run_on_all_ranks(communicator, failure, [&] {
    if (!decides) return std::string();
    const std::optional<std::string> path = choose();
    if (!path) return std::string();
    step = std::make_unique<Checkpoint>(files, *path);
    return fmt::format("{} {}", step->digest(), *path);
  });
  const std::string& answer = answers.front();
  if (answer.empty()) return nullptr;
  const auto space = answer.find(' ');
  const std::string digest = answer.substr(0, space), path = answer.substr(space + 1);
  run_on_all_ranks(communicator, fmt::format("{} was not loaded", path), [&] {
    if (decides) return std::string();
    step = std::make_unique<Checkpoint>(files, path);
    if (step->digest() == digest) return std::string();
    throw CheckpointError(fmt::format(
        "finds another step there than rank 0: a manifest of the digest {}, rank 0 of {}. Either it was saved "
        "again at this moment: load again; or this host does not see the files that rank 0 sees: mount the "
        "same folder on all hosts",
        step->digest(), digest));
  });
  return step;
}

Opened find_sound_step(FileSystem& files, comm::Communicator& communicator, const std::string& folder) {
  const bool is_rank0 = communicator.rank() == 0;
  const auto listed = run_on_all_ranks(communicator, fmt::format("no checkpoint was loaded from {}", folder), [&] {
    std::string paths;
    if (!is_rank0) return paths;
    const std::string hint = latest_hint(files, folder);
    if (!hint.empty() && !files.exists(fmt::format("{}/{}", folder, hint))) {
      log_warn(fmt::format("skipped, as zeropage.allow_fallback permits: '{}', which {} names and which is not there",
                           hint, kLatestName));
    }
    for (const auto& step : list_steps(files, folder)) {
      if (!step.problem.empty()) log_warn(fmt::format("skipped, as zeropage.allow_fallback permits: {}", step.problem));
      if (step.latest) paths += step.path + '\n';
    }
    return paths;
  });
  std::istringstream paths(listed.front());
  std::string last_error;
  for (std::string path; std::getline(paths, path);) {
    const std::string failure = fmt::format("{} is damaged", path);
    try {
      auto step = open_together(files, communicator, failure, [&] { return std::optional(path); });
      run_on_all_ranks(communicator, failure, [&] {
        for (int shard = communicator.rank(); shard < step->manifest().world_size; shard += communicator.size()) {
          step->verify_shard(shard);
        }
        return std::string();
      });
      return step;
    } catch (const CheckpointError& error) {
      last_error = error.what();
      if (is_rank0) log_warn(fmt::format("skipped, as zeropage.allow_fallback permits: {}", last_error));
    }
  }
  if (last_error.empty()) return nullptr;
  throw CheckpointError(fmt::format("every checkpoint in {} is damaged; the last one tried: {}", folder, last_error));
}

}  // namespace

std::unique_ptr<Checkpoint> find_checkpoint(FileSystem& files, comm::Communicator& communicator,
                                            const std::string& folder, const std::optional<std::string>& tag,
                                            bool allow_fallback) {
  if (allow_fallback && !tag) return find_sound_step(files, communicator, folder);
  return open_together(files, communicator, fmt::format("no checkpoint was loaded from {}", folder),
                       [&] { return choose_step(files, folder, tag); });
}

}  // namespace zeropage::checkpoint
