#include "zeropage/cli/ckpt_command.h"

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <csignal>
#include <map>
#include <nlohmann/json.hpp>
#include <vector>

#include "zeropage/base/error.h"
#include "zeropage/base/exit_code.h"
#include "zeropage/base/json_text.h"
#include "zeropage/checkpoint/diff.h"
#include "zeropage/checkpoint/load.h"
#include "zeropage/checkpoint/model_file.h"
#include "zeropage/checkpoint/save.h"
#include "zeropage/checkpoint/steps.h"

namespace zeropage::cli {
namespace {

using checkpoint::Checkpoint;
using checkpoint::StepFolder;

constexpr int kDifferentExitCode = 1;

checkpoint::FileSystem& files() { return checkpoint::system_files(); }

bool is_step(const std::string& path) { return files().exists(path + "/" + checkpoint::kManifestName); }

/// The path of a checkpoint: `path` itself, or the one with the tag, or the newest of a folder.
std::string step_path(const std::string& path, const std::optional<std::string>& tag) {
  if (is_step(path)) {
    if (tag) throw ConfigError(fmt::format("{} is a checkpoint: --tag chooses one from a folder of checkpoints", path));
    return path;
  }
  const auto found = checkpoint::choose_step(files(), path, tag);
  if (!found) throw ConfigError(fmt::format("there is no checkpoint in {}", path));
  return *found;
}

std::string format_bytes(std::int64_t bytes) {
  if (bytes < 10'000) return fmt::format("{} B", bytes);
  if (bytes < 10'000'000) return fmt::format("{:.1f} kB", static_cast<double>(bytes) / 1e3);
  return bytes < 10'000'000'000 ? fmt::format("{:.1f} MB", static_cast<double>(bytes) / 1e6)
                                : fmt::format("{:.1f} GB", static_cast<double>(bytes) / 1e9);
}

nlohmann::json to_json(const StepFolder& step, bool newest) {
  return {{"tag", step.tag},
          {"path", json::escaped(step.path)},
          {"global_steps", step.global_steps},
          {"world_size", step.world_size},
          {"stage", step.stage},
          {"bytes", step.bytes},
          {"saved_as_latest", step.latest},
          {"newest", newest},
          {"problem", step.problem}};
}

CkptOutcome list(const CkptCommand& command) {
  const auto steps = checkpoint::list_steps(files(), command.path);
  const auto newest = std::find_if(steps.begin(), steps.end(), [](const StepFolder& step) { return step.latest; });
  if (command.json) {
    auto out = nlohmann::json::array();
    for (auto step = steps.begin(); step != steps.end(); ++step) out.push_back(to_json(*step, step == newest));
    return {out.dump(2) + "\n", 0};
  }
  if (steps.empty()) return {fmt::format("there is no checkpoint in {}\n", command.path), 0};
  std::size_t width = 3;
  for (const auto& step : steps) width = std::max(width, step.tag.size());
  std::string text =
      fmt::format("{:<{}}  {:>8}  {:>5}  {:>5}  {:>9}\n", "tag", width, "step", "ranks", "stage", "size");
  for (auto step = steps.begin(); step != steps.end(); ++step) {
    if (!step->problem.empty()) {
      text += fmt::format("{:<{}}  cannot be used: {}\n", step->tag, width, step->problem);
      continue;
    }
    const char* note = step == newest ? "  newest" : step->latest ? "" : "  not latest";
    text += fmt::format("{:<{}}  {:>8}  {:>5}  {:>5}  {:>9}{}\n", step->tag, width, step->global_steps,
                        step->world_size, step->stage, format_bytes(step->bytes), note);
  }
  return {std::move(text), 0};
}

/// Verifies a checkpoint as loading does. Errors: IoError, CheckpointError.
std::string verify_step(const StepFolder& step) {
  if (!step.problem.empty()) throw CheckpointError(step.problem);
  Checkpoint opened(files(), step.path);
  opened.verify();
  std::int64_t bytes = 0;
  for (const auto& shard : opened.manifest().shards) bytes += shard.bytes;
  return fmt::format("intact, {} in {} shard(s)", format_bytes(bytes), opened.manifest().world_size);
}

CkptOutcome verify(const CkptCommand& command) {
  std::vector<StepFolder> steps;
  if (is_step(command.path) || command.tag) {
    steps.emplace_back().path = step_path(command.path, command.tag);
  } else {
    steps = checkpoint::list_steps(files(), command.path);
  }
  if (steps.empty()) throw ConfigError(fmt::format("there is no checkpoint in {}", command.path));
  CkptOutcome outcome;
  for (const auto& step : steps) {
    const std::string path = json::escaped(step.path);
    try {
      outcome.text += fmt::format("{}: {}\n", path, verify_step(step));
    } catch (const Error& error) {
      outcome.text += fmt::format("{}: cannot be used: {}\n", path, json::escaped(error.what()));
      outcome.code = kCheckpointExitCode;
    }
  }
  return outcome;
}

CkptOutcome export_step(const CkptCommand& command) {
  const std::map<std::string, std::string> types = {{"fp32", "F32"}, {"bf16", "BF16"}, {"fp16", "F16"}};
  Checkpoint step(files(), step_path(command.path, command.tag));
  checkpoint::ExportOptions options;
  options.folder = command.other;
  options.dtype = types.at(command.dtype);
  options.max_file_bytes = static_cast<std::int64_t>(command.max_file_size);
  options.exclude_frozen = command.exclude_frozen;
  CkptOutcome outcome;
  for (const auto& path : checkpoint::export_model(files(), step, options)) outcome.text += path + "\n";
  if (step.manifest().frozen_excluded) outcome.text += "the checkpoint was saved without frozen parameters\n";
  return outcome;
}

CkptOutcome diff(const CkptCommand& command) {
  Checkpoint a(files(), step_path(command.path, std::nullopt)), b(files(), step_path(command.other, std::nullopt));
  const auto lines = checkpoint::differences(a, b);
  std::string text = lines.empty() ? fmt::format("{} and {} are equal\n", a.path(), b.path()) : "";
  for (const auto& line : lines) text += line + "\n";
  return {std::move(text), lines.empty() ? 0 : kDifferentExitCode};
}

CLI::App* add(CLI::App& parent, const char* name, const char* about) {
  CLI::App* command = parent.add_subcommand(name, about);
  command->prefix_command(false);
  return command;
}

}  // namespace

CLI::App* add_ckpt_command(CLI::App& app, CkptCommand& command) {
  CLI::App* ckpt = add(app, "ckpt", "List, verify, compare and export checkpoints");
  ckpt->require_subcommand(1);
  ckpt->footer("import\n  Convert a DeepSpeed checkpoint: zeropage ckpt import --help");  // Python's (python_command.h)
  const auto add_tag = [&](CLI::App* to) {
    to->add_option("-t,--tag", command.tag, "Tag of the checkpoint in the folder; default: the newest")
        ->type_name("TAG");
  };
  const char* step_or_folder = "A checkpoint, or a folder of checkpoints";
  command.ls = add(*ckpt, "ls", "List the checkpoints of a folder, newest first");
  command.ls->add_option("FOLDER", command.path, "The folder given to save_checkpoint")->required();
  command.ls->add_flag("--json", command.json, "Print JSON");
  command.verify =
      add(*ckpt, "verify", "Read every byte and compare it with its digest; exit code 65 when a checkpoint is damaged");
  command.verify->add_option("PATH", command.path, "A checkpoint, or a folder to verify all its checkpoints")
      ->required();
  command.verify->add_option("-t,--tag", command.tag, "Only the checkpoint with this tag")->type_name("TAG");
  command.export_model = add(*ckpt, "export", "Write the model as safetensors files that other libraries load");
  command.export_model->add_option("PATH", command.path, step_or_folder)->required();
  command.export_model->add_option("OUTPUT", command.other, "The folder to write to; existing files are not replaced")
      ->required();
  add_tag(command.export_model);
  command.export_model->add_option("--dtype", command.dtype, "fp32 (from the masters), bf16 or fp16")
      ->check(CLI::IsMember({"fp32", "bf16", "fp16"}))
      ->type_name("NAME");
  command.export_model->add_option("--max_file_size", command.max_file_size, "Tensor data per file, for example 5GB")
      ->transform(CLI::AsSizeValue(true))
      ->type_name("SIZE");
  command.export_model->add_flag("--exclude_frozen", command.exclude_frozen, "Leave out frozen parameters");
  command.diff = add(*ckpt, "diff", "Compare two checkpoints; exit code 1 when they differ");
  command.diff->add_option("A", command.path, step_or_folder)->required();
  command.diff->add_option("B", command.other, step_or_folder)->required();
  return ckpt;
}

CkptOutcome run_ckpt_command(const CkptCommand& command) {
  std::signal(SIGXFSZ,
              SIG_IGN);  // writing beyond the file size limit must be an error with a path, not the end of the process
  if (command.ls->parsed()) return list(command);
  if (command.verify->parsed()) return verify(command);
  return command.export_model->parsed() ? export_step(command) : diff(command);
}

}  // namespace zeropage::cli
