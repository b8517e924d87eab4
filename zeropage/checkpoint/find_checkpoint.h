/// \file
/// Chooses the checkpoint of a folder that the ranks load. Rank 0 decides, and all ranks load the checkpoint that it
/// has opened:
///
///   1. Rank 0 chooses a checkpoint, opens its manifest, and sends path and digest to the others.
///   2. Every other rank opens the manifest at that path and compares the digest. They differ when the same tag is
///      saved again at that moment, when a network file system shows a rank an old state, or when hosts have different
///      folders with the same name.
///   3. The load uses the opened checkpoint and does not look it up by name again. A shard file is compared with the
///      manifest when it is opened.
///
/// So all ranks load the same checkpoint, or all fail with an error that names the ranks.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "zeropage/checkpoint/load.h"
#include "zeropage/comm/communicator.h"

namespace zeropage::checkpoint {

/// Collective. Opens the checkpoint with this tag, or the newest one, the same on every rank; null when there is none.
/// With `allow_fallback` and without a tag: the newest checkpoint without damage. The ranks verify its shards in
/// parallel, and rank 0 warns of every newer one that is damaged. Errors: CheckpointError on every rank, also when a
/// rank cannot read the checkpoint that rank 0 has found, or finds another one there.
std::unique_ptr<Checkpoint> find_checkpoint(FileSystem& files, comm::Communicator& communicator,
                                            const std::string& folder, const std::optional<std::string>& tag,
                                            bool allow_fallback);

}  // namespace zeropage::checkpoint
