#include "zeropage/comm/c10d/c10d_store.h"

#include <fmt/format.h>
#include <sys/random.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <mutex>
#include <thread>
#include <vector>

// torch's headers last, because they define macros.
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>

#include "zeropage/base/blocking.h"
#include "zeropage/base/error.h"
#include "zeropage/base/sha256.h"
#include "zeropage/comm/c10d/c10d_queue.h"
#include "zeropage/comm/meeting_socket.h"

namespace zeropage::comm {
namespace {

using std::chrono::milliseconds;
using StorePtr = c10::intrusive_ptr<c10d::Store>;

constexpr milliseconds kBetweenAttempts(20);
constexpr const char* kSource =
    "MASTER_ADDR: from --master_addr, the hostfile, Slurm or torchrun; set --master_addr, or MASTER_ADDR, to an "
    "address "
    "of rank 0's host that every host reaches";

std::vector<std::uint8_t> bytes_of(const std::string& text) { return {text.begin(), text.end()}; }

std::string text_of(const std::vector<std::uint8_t>& bytes) { return {bytes.begin(), bytes.end()}; }

StorePtr connect(const World& world, const Meeting& meeting, milliseconds timeout) {
  c10d::TCPStoreOptions options;
  options.port = meeting.port;
  options.isServer = world.rank == 0 && !meeting.is_open;
  options.waitWorkers = false;
  options.timeout = timeout;
  const auto addresses = resolve_host(meeting.address, kSource, timeout);
  if (!options.isServer) {
    await_listener(addresses, meeting, timeout);
    return c10::make_intrusive<c10d::TCPStore>(meeting.address, options);
  }
  Descriptor socket = listen_for_ranks(addresses, meeting);
  options.masterListenFd = socket.release();  // the store closes it
  return c10::make_intrusive<c10d::TCPStore>(meeting.address, options);
}

std::string make_challenge() {
  std::array<unsigned char, 16> bits{};
  if (::getrandom(bits.data(), bits.size(), 0) != static_cast<ssize_t>(bits.size())) {
    throw IoError("cannot read random bits; the kernel must offer getrandom");
  }
  std::string text;
  for (const unsigned char byte : bits) text += fmt::format("{:02x}", byte);
  return text;
}

/// The value at `key`. Errors: TimeoutError that names the missing event; c10::DistNetworkError when the store was
/// closed meanwhile.
std::string await_text(c10d::Store& store, const std::string& key, milliseconds timeout, const std::string& missing) {
  try {
    store.wait({key}, timeout);
  } catch (const c10::DistNetworkError&) {
    throw;
  } catch (const std::exception&) {
    throw TimeoutError(fmt::format("{} within {} ms; see its output", missing, timeout.count()));
  }
  return text_of(store.get(key));
}

/// Step 3 on rank 0.
void answer_ranks(c10d::Store& store, const World& world, const std::string& token, milliseconds timeout) {
  for (int rank = 1; rank < world.size; ++rank) {
    const auto challenge =
        await_text(store, fmt::format("challenge/{}", rank), timeout, fmt::format("rank {} did not come", rank));
    store.set(fmt::format("answer/{}", rank), bytes_of(hmac_sha256(token, challenge)));
  }
}

/// Step 3 on the other ranks.
void check_rank0(c10d::Store& store, const World& world, const std::string& token, milliseconds timeout) {
  const std::string challenge = make_challenge();
  store.set(fmt::format("challenge/{}", world.rank), bytes_of(challenge));
  const auto answer =
      await_text(store, fmt::format("answer/{}", world.rank), timeout, "rank 0 did not prove that it knows the token");
  if (answer == hmac_sha256(token, challenge)) return;
  throw PeerError(
      "who listens there is not rank 0 of this job: it does not know the job's token (ZEROPAGE_JOB_TOKEN); another "
      "program has the port: choose another one with --master_port");
}

/// Steps 2 to 4.
StorePtr meet(const World& world, const Meeting& meeting, const std::string& token, milliseconds timeout) {
  const auto end = std::chrono::steady_clock::now() + timeout;
  const auto remaining = [&] {
    return std::chrono::duration_cast<milliseconds>(end - std::chrono::steady_clock::now());
  };
  while (true) {
    StorePtr store = connect(world, meeting, std::max(remaining(), milliseconds(1)));
    if (meeting.is_open) return store;
    c10d::PrefixStore checked("zeropage/token", store);
    try {
      if (world.rank == 0) {
        answer_ranks(checked, world, token, timeout);
      } else {
        check_rank0(checked, world, token, std::max(remaining(), milliseconds(1)));
      }
      return store;
    } catch (const c10::DistNetworkError&) {
      if (world.rank == 0 || remaining() <= milliseconds(0)) throw;
      std::this_thread::sleep_for(kBetweenAttempts);
    }
  }
}

StorePtr make_store(const World& world, const Meeting& given, const std::string& token, milliseconds timeout) {
  Meeting meeting = given;
  const bool on_one_host = world.local_size == world.size;
  if (on_one_host && !meeting.is_open) meeting.address = "127.0.0.1";
  // Gloo also listens: by default at the address of this host's name. The user's setting is kept.
  if (on_one_host) ::setenv("GLOO_SOCKET_IFNAME", "lo", /*overwrite=*/0);
  const auto blocking = enter_blocking();
  try {
    return c10::make_intrusive<c10d::PrefixStore>(meeting.prefix + "zeropage", meet(world, meeting, token, timeout));
  } catch (...) {
    rethrow_not_joined(world, meeting);
  }
}

}  // namespace

void rethrow_not_joined(const World& world, const Meeting& meeting) {
  const std::string cause = message_in_flight();
  const std::string message =
      fmt::format("rank {} of {} could not join the others at {}:{} (MASTER_ADDR, MASTER_PORT): {}", world.rank,
                  world.size, meeting.address, meeting.port, cause);
  try {
    throw;
  } catch (const ConfigError&) {
    throw ConfigError(message);
  } catch (const IoError&) {
    throw IoError(message);
  } catch (const TimeoutError&) {
    throw TimeoutError(message);
  } catch (...) {
    if (is_timeout(cause)) throw TimeoutError(message);
    throw PeerError(message);
  }
}

c10::intrusive_ptr<c10d::Store> job_store(const World& world, const Meeting& meeting, const std::string& token,
                                          milliseconds timeout) {
  static std::mutex mutex;
  static auto* const store = new StorePtr();
  const std::scoped_lock lock(mutex);
  if (!*store) *store = make_store(world, meeting, token, timeout);
  return *store;
}

}  // namespace zeropage::comm
