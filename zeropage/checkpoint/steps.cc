#include "zeropage/checkpoint/steps.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>

#include "zeropage/base/error.h"
#include "zeropage/base/json_text.h"
#include "zeropage/checkpoint/manifest_summary.h"
#include "zeropage/checkpoint/save.h"

namespace zeropage::checkpoint {
namespace {

constexpr std::int64_t kMaxHintBytes = 4096;

void read_summary(FileSystem& files, StepFolder& step) {
  const std::string path = manifest_path(step.path);
  const std::string text = read_text(files, path, kMaxManifestBytes);
  step.claimed = claimed_sequence(text);
  const auto summary = summary_from_text(text, path);
  step.claimed = summary.sequence;
  if (!step.path.ends_with("/" + step.tag)) {
    throw CheckpointError(step.path + ": expected a folder name of UTF-8 without control characters: rename it");
  }
  step.run = summary.run;
  step.sequence = summary.sequence;
  step.latest = summary.latest;
  step.global_steps = summary.global_steps;
  step.world_size = summary.world_size;
  step.stage = summary.stage;
  step.bytes = summary.shard_bytes;
}

StepFolder describe(FileSystem& files, const std::string& folder, const std::string& name) {
  StepFolder step;
  step.tag = zeropage::json::escaped(name);
  step.path = fmt::format("{}/{}", folder, name);
  try {
    read_summary(files, step);
  } catch (const Error& error) {
    step.problem = zeropage::json::escaped(error.what());
  }
  return step;
}

/// Whether it is a directory that has a manifest, or shards without one. (False for files, and for directories that
/// cannot be listed.)
bool is_step(FileSystem& files, const std::string& path) {
  if (files.exists(manifest_path(path))) return true;
  try {
    const auto names = files.list(path);
    return std::any_of(names.begin(), names.end(),
                       [](const auto& name) { return name.starts_with("shard-") && name.ends_with(".safetensors"); });
  } catch (const IoError&) {
    return false;
  }
}

std::string what_to_do(const std::vector<StepFolder>& steps, std::vector<StepFolder>::const_iterator sound) {
  if (sound == steps.end()) return "there is no older one to load instead";
  return fmt::format("the newest intact one is '{}': load it by its tag, or set zeropage.allow_fallback", sound->tag);
}

}  // namespace

std::string manifest_path(const std::string& step_path) { return fmt::format("{}/{}", step_path, kManifestName); }

std::vector<StepFolder> list_steps(FileSystem& files, const std::string& folder) {
  std::vector<StepFolder> steps;
  for (const auto& name : files.list(folder)) {
    if (name.starts_with('.') || !is_step(files, fmt::format("{}/{}", folder, name))) continue;
    steps.push_back(describe(files, folder, name));
  }
  std::stable_sort(steps.begin(), steps.end(), [](const auto& a, const auto& b) { return a.sequence > b.sequence; });
  return steps;
}

std::optional<std::string> choose_step(FileSystem& files, const std::string& folder,
                                       const std::optional<std::string>& tag) {
  if (tag) {
    check_tag(*tag);
    std::string path = fmt::format("{}/{}", folder, *tag);
    if (files.exists(path)) return path;
    std::vector<std::string> tags;
    for (const auto& step : list_steps(files, folder)) tags.push_back(step.tag);
    throw CheckpointError(fmt::format("there is no checkpoint '{}' in {}; there are: {}", *tag, folder,
                                      tags.empty() ? "none" : fmt::format("{}", fmt::join(tags, ", "))));
  }
  const auto steps = list_steps(files, folder);
  const auto sound = std::find_if(steps.begin(), steps.end(), [](const auto& step) { return step.latest; });
  const std::string hint = latest_hint(files, folder);
  const auto hinted = std::find_if(steps.begin(), steps.end(), [&](const auto& step) { return step.tag == hint; });
  if (!hint.empty() && hinted == steps.end()) {
    const bool foreign = files.exists(fmt::format("{}/{}", folder, hint));
    throw CheckpointError(fmt::format(
        "{0}/{1} names '{2}', which is {3}; {4}", folder, kLatestName, hint,
        foreign ? "no checkpoint of zeropage (`zeropage ckpt import` makes one of DeepSpeed's)"
                : "not there: it was lost, or removed on purpose; then remove " + std::string(kLatestName) + ", too",
        what_to_do(steps, sound)));
  }
  for (const auto& step : steps) {
    const bool older = sound != steps.end() && step.claimed >= 0 && step.claimed < sound->sequence;
    if (step.problem.empty() || (older && step.tag != hint)) continue;
    throw CheckpointError(fmt::format("{}; it may be the newest; {}", step.problem, what_to_do(steps, sound)));
  }
  if (sound == steps.end()) return std::nullopt;
  return sound->path;
}

std::int64_t next_sequence(FileSystem& files, const std::string& folder) {
  std::int64_t last = -1;
  for (const auto& step : list_steps(files, folder)) last = std::max(last, step.claimed);
  if (last >= kMaxSequence) {
    throw CheckpointError(
        fmt::format("{}: a step claims the sequence {}, and no higher one can be written: remove that step, or "
                    "save into another folder",
                    folder, last));
  }
  return last + 1;
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
