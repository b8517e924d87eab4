/// \file
/// Which step of a folder the ranks load. Rank 0 decides, and what it has read is what all load:
///
///   1. Rank 0 chooses a step, opens its manifest and tells the others path and digest.
///   2. Every other rank opens the manifest at that path and compares the digest. They differ when somebody saves the
///      same tag again at that moment, when a network file system shows a rank an old state, or when hosts have
///      different folders of the same name.
///   3. The opened step is handed to the load, so that nothing is looked up by its name again. A shard file is compared
///      with the manifest when it is opened.
///
/// So all ranks load one step, or all fail with the ranks' names.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "zeropage/checkpoint/load.h"
#include "zeropage/comm/communicator.h"

namespace zeropage::checkpoint {

/// Collective. Opens the tagged step or the newest, the same on every rank; null when there is none. With
/// `allow_fallback` and without a tag: the newest whose every byte is as it was saved; the ranks verify its shards side
/// by side, and rank 0 warns of every newer one that is damaged. Errors: CheckpointError on every rank, also when a
/// rank cannot read what rank 0 has found, or finds another step there.
std::unique_ptr<Checkpoint> find_checkpoint(FileSystem& files, comm::Communicator& communicator,
                                            const std::string& folder, const std::optional<std::string>& tag,
                                            bool allow_fallback);

}  // namespace zeropage::checkpoint
