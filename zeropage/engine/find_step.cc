#include "zeropage/engine/find_step.h"

#include <fmt/format.h>

#include <sstream>

#include "zeropage/base/error.h"
#include "zeropage/base/log.h"
#include "zeropage/checkpoint/exchange.h"
#include "zeropage/checkpoint/load.h"
#include "zeropage/checkpoint/steps.h"

namespace zeropage::engine {
namespace {

using checkpoint::system_files;
using checkpoint::together;

std::optional<std::string> find_sound_step(comm::Communicator& communicator, const std::string& folder) {
  const bool speaks = communicator.rank() == 0;
  const auto listed = together(communicator, fmt::format("no checkpoint was loaded from {}", folder), [&] {
    std::string paths;
    if (!speaks) return paths;
    for (const auto& step : checkpoint::list_steps(system_files(), folder)) {
      if (!step.problem.empty())
        log_warn(fmt::format("passed over, as zeropage.allow_fallback says: {}", step.problem));
      if (step.latest) paths += step.path + '\n';
    }
    return paths;
  });
  std::istringstream paths(listed.front());
  std::string last_error;
  for (std::string path; std::getline(paths, path);) {
    try {
      together(communicator, fmt::format("{} is not sound", path), [&] {
        checkpoint::Checkpoint step(system_files(), path);
        for (int shard = communicator.rank(); shard < step.manifest().world_size; shard += communicator.size()) {
          step.verify_shard(shard);
        }
        return std::string();
      });
      return path;
    } catch (const CheckpointError& error) {
      last_error = error.what();
      if (speaks) log_warn(fmt::format("passed over, as zeropage.allow_fallback says: {}", last_error));
    }
  }
  if (last_error.empty()) return std::nullopt;
  throw CheckpointError(fmt::format("no checkpoint in {} is sound; the last one tried: {}", folder, last_error));
}

}  // namespace

std::optional<std::string> find_step(comm::Communicator& communicator, const std::string& folder,
                                     const std::optional<std::string>& tag, bool allow_fallback) {
  if (allow_fallback && !tag) return find_sound_step(communicator, folder);
  const auto answers = together(communicator, fmt::format("no checkpoint was loaded from {}", folder), [&] {
    return communicator.rank() == 0 ? checkpoint::choose_step(system_files(), folder, tag).value_or("") : std::string();
  });
  const auto& path = answers.front();
  if (path.empty()) return std::nullopt;
  // A rank that cannot see what rank 0 sees is found here, and not when the others wait for it.
  together(communicator, fmt::format("{} was not loaded", path),
           [&] { return checkpoint::Checkpoint(system_files(), path).manifest().tag; });
  return path;
}

}  // namespace zeropage::engine
