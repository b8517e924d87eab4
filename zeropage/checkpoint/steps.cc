#include "zeropage/checkpoint/steps.h"

#include <fmt/format.h>

#include <algorithm>

#include "zeropage/base/error.h"
#include "zeropage/checkpoint/save.h"

namespace zeropage::checkpoint {
namespace {

constexpr std::int64_t kMaxHintBytes = 4096;

Step describe(FileSystem& files, const std::string& folder, const std::string& tag) {
  Step step;
  step.tag = tag;
  step.path = fmt::format("{}/{}", folder, tag);
  try {
    const Manifest manifest = read_manifest(files, step.path);
    step.sequence = manifest.sequence;
    step.latest = manifest.latest;
    step.global_steps = manifest.training.global_steps;
    step.world_size = manifest.world_size;
    step.stage = manifest.stage;
    for (const auto& shard : manifest.shards) step.bytes += shard.bytes;
  } catch (const Error& error) {
    step.problem = error.what();
  }
  return step;
}

}  // namespace

Manifest read_manifest(FileSystem& files, const std::string& step_path) {
  const std::string path = fmt::format("{}/{}", step_path, kManifestName);
  return manifest_from_text(read_text(files, path, kMaxManifestBytes), path);
}

std::vector<Step> list_steps(FileSystem& files, const std::string& folder) {
  std::vector<Step> steps;
  for (const auto& name : files.list(folder)) {
    if (name.starts_with('.') || !files.exists(fmt::format("{}/{}/{}", folder, name, kManifestName))) continue;
    steps.push_back(describe(files, folder, name));
  }
  std::stable_sort(steps.begin(), steps.end(), [](const auto& a, const auto& b) { return a.sequence > b.sequence; });
  return steps;
}

std::int64_t next_sequence(FileSystem& files, const std::string& folder) {
  const auto steps = list_steps(files, folder);
  return steps.empty() ? 0 : std::max<std::int64_t>(steps.front().sequence, -1) + 1;
}

std::string latest_hint(FileSystem& files, const std::string& folder) {
  const std::string path = fmt::format("{}/{}", folder, kLatestName);
  if (!files.exists(path)) return "";
  try {
    std::string tag = read_text(files, path, kMaxHintBytes);
    while (!tag.empty() && (tag.back() == '\n' || tag.back() == '\r' || tag.back() == ' ')) tag.pop_back();
    check_tag(tag);
    return tag;
  } catch (const Error&) {
    return "";  // only a hint
  }
}

}  // namespace zeropage::checkpoint
