#include "zeropage/comm/shm/shared_memory_communicator.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "zeropage/base/error.h"
#include "zeropage/comm/shm/process_status.h"
#include "zeropage/comm/shm/region_communicator.h"
#include "zeropage/comm/shm/shared_file.h"
#include "zeropage/comm/shm/shared_memory_join.h"

namespace zeropage::comm {
namespace {

/// A rank's message about a file it has made, and then about its attempt to map the peers' files.
struct Offer {
  std::int64_t bytes = 0;
  char path[120] = {};
};
struct Outcome {
  char error[248] = {};  ///< empty: all mapped
};

template <typename Message>
std::vector<Message> exchange(Communicator& communicator, const Message& mine, std::int64_t id) {
  const std::string all =
      all_gather_small(communicator, {reinterpret_cast<const char*>(&mine), sizeof(mine)}, {"allocate", id});
  std::vector<Message> messages(static_cast<std::size_t>(communicator.size()));
  std::memcpy(messages.data(), all.data(), all.size());
  return messages;
}

class ProcessTransport final : public RegionTransport {
 public:
  explicit ProcessTransport(std::shared_ptr<ControlBlock> control) : control_(std::move(control)) {}

  std::string lost(int rank) const override {
    const RankControl& peer = control_->rank(rank);
    const std::int64_t pid = peer.pid.load(std::memory_order_relaxed);
    if (process_lives(pid, peer.start_time.load(std::memory_order_relaxed))) return "";
    return fmt::format("its process {} has ended or was killed", pid);
  }

  std::string describe(int rank) const override {
    const std::int64_t pid = control_->rank(rank).pid.load(std::memory_order_relaxed);
    const auto status = process_status(pid);
    return fmt::format("pid {}{}", pid, status && status->state == 'T' ? ", stopped by a signal" : "");
  }

  RegionParts share(Communicator& communicator, std::int64_t bytes, std::string_view label) override {
    std::string errors;
    for (const Backing backing : {Backing::kAnonymousFile, Backing::kTemporaryFile}) {
      RegionParts parts = try_share(communicator, backing, bytes, std::string(label), errors);
      if (!parts.empty()) return parts;
    }
    throw IoError(fmt::format("cannot share {} bytes per rank for {}:{}", bytes, label, errors));
  }

 private:
  /// Empty, with a message added to `errors`, if some rank could not create its file or map a peer's: the same on all
  /// ranks.
  RegionParts try_share(Communicator& communicator, Backing backing, std::int64_t bytes, const std::string& label,
                        std::string& errors) {
    SharedFile file;
    Offer offer{.bytes = bytes};
    Outcome outcome;
    try {
      file = create_shared_file(backing, bytes);
      copy_text(file.path, offer.path, sizeof(offer.path));
    } catch (const IoError& error) {
      copy_text(error.what(), outcome.error, sizeof(outcome.error));
    }
    RegionParts parts;
    try {
      const std::vector<Offer> offers = exchange(communicator, offer, bytes);
      for (int r = 0; r < communicator.size(); ++r) {
        const char* path = offers[static_cast<std::size_t>(r)].path;
        if (path[0] == '\0') continue;  // its outcome has the reason
        const bool own = r == communicator.rank();
        const SharedFile theirs = own ? SharedFile() : open_shared_file(path, bytes);
        parts.push_back(std::make_shared<MappedRegion>(own ? file.fd.get() : theirs.fd.get(), bytes, label.c_str()));
      }
    } catch (const IoError& error) {
      copy_text(error.what(), outcome.error, sizeof(outcome.error));
    }
    bool shared = true;
    int rank = 0;
    for (const Outcome& theirs : exchange(communicator, outcome, bytes)) {
      if (theirs.error[0] != '\0') {
        shared = false;
        errors += fmt::format(" [rank {}: {}]", rank, theirs.error);
      }
      ++rank;
    }
    return shared ? parts : RegionParts();
  }

  const std::shared_ptr<ControlBlock> control_;
};

}  // namespace

std::unique_ptr<Communicator> join_shared_memory(const std::string& name, int rank, int size,
                                                 std::chrono::milliseconds timeout, std::shared_ptr<Aborts> aborts) {
  if (size < 1 || size > kMaxRanks || rank < 0 || rank >= size) {
    throw ConfigError(
        fmt::format("rank {} of {}: ranks run from 0, and at most {} can share memory", rank, size, kMaxRanks));
  }
  const bool name_fits =
      !name.empty() && name.size() <= 60 && name.front() != '.' &&
      name.find_first_not_of("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.") == name.npos;
  if (!name_fits) {
    throw ConfigError(fmt::format("'{}' cannot name a job's shared memory; use 1 to 60 letters, digits and -_.", name));
  }
  auto control = join_control(name, rank, size, timeout);
  auto transport = std::make_unique<ProcessTransport>(control);
  return std::make_unique<RegionCommunicator>(std::move(control), rank, std::move(transport), timeout,
                                              std::move(aborts));
}

}  // namespace zeropage::comm
