/// The protocol of a save. One rename commits a checkpoint; until then no earlier checkpoint is changed.
///
///   1. Rank 0 claims the folder (folder_claim.h), removes the remains of dead saves, makes
///      `<folder>/.<tag>.<random>.tmp`, locks it, and sends its name to all ranks.
///   2. Every rank writes its shard file there, computes the digest of each chunk, and syncs the file.
///   3. The ranks exchange extents and digests, or their errors. After a failure rank 0 removes the directory and every
///      rank throws. A failed sync is never tried again: the next save writes new files.
///   4. Rank 0 writes the manifest (synced) and syncs the directory: names and contents are now durable, still under
///      the temporary name.
///   5. Rank 0 renames the directory to `<folder>/<tag>` and syncs the folder: the commit. If the tag exists, the two
///      directories are swapped atomically instead, and the old one is removed.
///   6. Rank 0 replaces `latest`, a hint for people: loading uses the manifests. Old checkpoints of this run that need
///      not be kept are renamed to temporary names, which removes them atomically, and are then deleted. The ranks
///      exchange that all have succeeded.
///
/// After the death of a process in steps 1 to 4 there is a temporary directory that no loader reads. After its death in
/// step 5 there is the old or the new checkpoint.
#include "zeropage/checkpoint/save.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>

#include "zeropage/base/error.h"
#include "zeropage/base/json_text.h"
#include "zeropage/base/log.h"
#include "zeropage/checkpoint/exchange.h"
#include "zeropage/checkpoint/steps.h"
#include "zeropage/checkpoint/temporary_folder.h"
#include "zeropage/checkpoint/untrusted_json.h"

namespace zeropage::checkpoint {
namespace {

using nlohmann::json;

void refuse_foreign(FileSystem& files, const std::string& path) {
  if (!files.exists(path) || holds_only_our_files(files, path)) return;
  throw CheckpointError(
      fmt::format("{} is there already and is no checkpoint of zeropage, which a save would replace: save under "
                  "another tag, or into another folder",
                  path));
}

/// The description of a rank's shard for rank 0, as JSON.
std::string describe_shard(const ShardRecord& shard, const std::vector<LocalTensor>& tensors) {
  json entries = json::array();
  for (const auto& tensor : tensors) {
    entries.push_back({tensor.info.name, tensor.info.dtype, tensor.info.shape, tensor.offset, tensor.numel});
  }
  return json{{"bytes", shard.bytes}, {"digests", shard.digests}, {"tensors", std::move(entries)}}.dump();
}

/// Puts the shards and extents of all ranks into the manifest.
void collect(const std::vector<std::string>& ranks, Manifest& manifest) {
  std::map<std::string, TensorRecord> tensors;
  for (std::size_t rank = 0; rank < ranks.size(); ++rank) {
    const json shard = json::parse(ranks[rank]);
    manifest.shards.push_back({shard["bytes"].get<std::int64_t>(), shard["digests"].get<std::string>()});
    for (const json& entry : shard["tensors"]) {
      auto& record = tensors[entry[0].get<std::string>()];
      TensorInfo info{entry[0].get<std::string>(), entry[1].get<std::string>(),
                      entry[2].get<std::vector<std::int64_t>>()};
      if (!record.info.name.empty() && record.info != info) {
        throw CheckpointError(fmt::format("tensor '{}' has another type or shape on rank {}", info.name, rank));
      }
      record.info = std::move(info);
      const auto numel = entry[4].get<std::int64_t>();
      if (numel > 0) record.segments.push_back({static_cast<int>(rank), entry[3].get<std::int64_t>(), numel});
    }
  }
  for (auto& [name, record] : tensors) {
    std::sort(record.segments.begin(), record.segments.end(),
              [](const auto& a, const auto& b) { return a.offset < b.offset; });
    manifest.tensors.push_back(std::move(record));
  }
}

/// Removes old checkpoints. Those that were saved with latest = false, damaged ones and those of other runs are neither
/// counted nor removed. If one cannot be removed, this is only a warning: the new checkpoint is safe.
void prune(FileSystem& files, const std::string& folder, std::int64_t keep_last, const std::string& run) {
  try {
    std::int64_t kept = 0;
    for (const auto& step : list_steps(files, folder)) {      // newest first
      const bool ours = step.run == run || step.run.empty();  // older releases did not write it
      if (!step.latest || !ours || ++kept <= keep_last) continue;
      if (!holds_only_our_files(files, step.path)) continue;
      const std::string expired = temporary_path(folder, step.tag);
      files.rename(step.path, expired);
      files.sync_directory(folder);  // otherwise the name could exist without the content after a power cut
      files.remove_all(expired);
    }
  } catch (const Error& error) {
    log_warn(fmt::format("an old checkpoint was not removed: {}", error.what()));
  }
}

/// Steps 4 to 6, on rank 0.
void commit(FileSystem& files, const std::string& folder, Manifest manifest, const std::vector<std::string>& ranks,
            TemporaryFolder& temporary) {
  collect(ranks, manifest);
  manifest.sequence = next_sequence(files, folder);
  const std::string text = manifest_to_text(manifest);
  const std::string path = temporary.path() + "/" + kManifestName;
  manifest_from_text(text, path);  // contradictory extents are found now, not when loading
  write_text(files, path, text);
  // `latest` is written inside the directory and moved out after the commit, so that a killed save leaves no temporary
  // file of it.
  if (manifest.latest) write_text(files, fmt::format("{}/{}", temporary.path(), kLatestName), manifest.tag + "\n");
  files.sync_directory(temporary.path());
  const std::string final_path = fmt::format("{}/{}", folder, manifest.tag);
  if (files.exists(final_path)) {
    refuse_foreign(files, final_path);
    files.exchange(temporary.path(), final_path);
    files.sync_directory(folder);
    files.remove_all(temporary.path());
  } else {
    files.rename(temporary.path(), final_path);
    files.sync_directory(folder);
  }
  temporary.committed();
  if (manifest.latest) {
    files.rename(fmt::format("{}/{}", final_path, kLatestName), fmt::format("{}/{}", folder, kLatestName));
    files.sync_directory(folder);
  }
}

}  // namespace

void check_tag(const std::string& tag) {
  const bool plain = !tag.empty() && tag.size() <= 200 && tag.front() != '.' && tag != kLatestName &&
                     tag.find_first_of("/\\") == std::string::npos && zeropage::json::escaped(tag) == tag;
  if (!plain) {
    throw UsageError(fmt::format(
        "the tag '{}' cannot name a checkpoint; expected a directory name of UTF-8 without control characters "
        "that does not start with a dot, has no slash, and is not '{}'",
        zeropage::json::printable(tag), kLatestName));
  }
}

std::string save(FileSystem& files, comm::Communicator& communicator, SaveRequest request) {
  const auto& tag = request.manifest.tag;
  check_tag(tag);
  const int rank = communicator.rank();
  const std::string what = fmt::format("the checkpoint '{}' was not saved in {}", tag, request.folder);
  const auto run = request.run ? request.run : std::make_shared<TrainingRun>();
  std::unique_ptr<TemporaryFolder> temporary;
  auto answers = run_on_all_ranks(communicator, what, [&] {
    if (rank != 0) return std::string();
    files.make_directories(request.folder);
    run->claim(files, request.folder);
    refuse_foreign(files, fmt::format("{}/{}", request.folder, tag));
    remove_leftovers(files, request.folder);
    temporary = std::make_unique<TemporaryFolder>(files, request.folder, tag);
    return json{{"tag", tag}, {"path", temporary->path()}}.dump();
  });
  const json place = json::parse(answers.front());
  const auto ranks = run_on_all_ranks(communicator, what, [&] {
    if (place["tag"] != tag) {
      throw UsageError(
          fmt::format("rank 0 saves '{}'; every rank must save the same tag", place["tag"].get<std::string>()));
    }
    const std::string path = place["path"].get<std::string>() + "/" + shard_file_name(rank, communicator.size());
    const auto shard = write_shard(files, path, request.tensors, request.manifest.chunk_bytes, request.progress);
    return describe_shard(shard, request.tensors);
  });
  run_on_all_ranks(communicator, what, [&] {
    if (rank == 0) {
      request.manifest.world_size = communicator.size();
      request.manifest.run = run->id();
      commit(files, request.folder, std::move(request.manifest), ranks, *temporary);
      if (request.keep_last > 0) prune(files, request.folder, request.keep_last, run->id());
    }
    return std::string();
  });
  return fmt::format("{}/{}", request.folder, place["tag"].get<std::string>());
}

}  // namespace zeropage::checkpoint
