#include "zeropage/launch/host.h"

#include <arpa/inet.h>
#include <fmt/format.h>
#include <netinet/in.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <optional>
#include <sstream>

#include "zeropage/base/error.h"

namespace zeropage::launch {
namespace {

namespace fs = std::filesystem;

bool is_program(const fs::path& path) {
  std::error_code error;
  return fs::is_regular_file(path, error) && ::access(path.c_str(), X_OK) == 0;
}

/// Listens at `number` (0: the kernel chooses) on all addresses and lets go again. The number, or 0 if it is taken.
int probe_port(int number) {
  const Fd probe(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (!probe) throw_errno("cannot make a socket", "raise the limit of open files (ulimit -n)");
  const int yes = 1;
  ::setsockopt(probe.get(), SOL_SOCKET, SO_REUSEADDR, &yes, sizeof(yes));  // connections in TIME_WAIT do not matter
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<std::uint16_t>(number));
  socklen_t address_bytes = sizeof(address);
  auto* generic = reinterpret_cast<sockaddr*>(&address);
  if (::bind(probe.get(), generic, sizeof(address)) != 0 || ::listen(probe.get(), 1) != 0 ||
      ::getsockname(probe.get(), generic, &address_bytes) != 0) {
    return 0;
  }
  return ntohs(address.sin_port);
}

/// Claims the port among launchers: a name in the kernel's table of local sockets that only one process can hold and that
/// goes with it, whatever becomes of it. No descriptor if another launcher has it.
Fd claim_among_launchers(int number) {
  Fd claim(::socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  if (!claim) throw_errno("cannot make a socket", "raise the limit of open files (ulimit -n)");
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  const std::string name = fmt::format("zeropage-port-{}", number);
  // A leading zero byte: the name is not in the file system.
  std::memcpy(address.sun_path + 1, name.data(), name.size());
  const auto bytes = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + name.size());
  if (::bind(claim.get(), reinterpret_cast<sockaddr*>(&address), bytes) != 0) claim.reset();
  return claim;
}

std::optional<Port> try_port(int wanted) {
  const int number = probe_port(wanted);
  if (number == 0) return std::nullopt;
  Fd claim = claim_among_launchers(number);
  if (!claim) return std::nullopt;
  return Port{number, std::move(claim)};
}

}  // namespace

std::vector<std::string> visible_gpus(const std::string& device_folder, const char* visible) {
  std::vector<std::string> gpus;
  if (visible) {
    std::stringstream entries{std::string(visible)};
    for (std::string entry; std::getline(entries, entry, ',');) {
      entry.erase(std::remove(entry.begin(), entry.end(), ' '), entry.end());
      if (entry.empty() || entry.front() == '-') break;
      gpus.push_back(entry);
    }
    return gpus;
  }
  std::error_code error;
  for (const auto& file : fs::directory_iterator(device_folder, error)) {
    const std::string name = file.path().filename();
    const bool is_gpu = name.rfind("nvidia", 0) == 0 && name.size() > 6 &&
                        std::all_of(name.begin() + 6, name.end(), [](unsigned char c) { return std::isdigit(c); });
    if (is_gpu) gpus.push_back(std::to_string(gpus.size()));
  }
  return gpus;
}

std::string find_program(const std::string& name) {
  if (name.find('/') != std::string::npos) return is_program(name) ? name : "";
  const char* path = std::getenv("PATH");
  std::stringstream folders{std::string(path ? path : "/usr/local/bin:/usr/bin:/bin")};
  for (std::string folder; std::getline(folders, folder, ':');) {
    const fs::path candidate = fs::path(folder.empty() ? "." : folder) / name;
    if (is_program(candidate)) return candidate;
  }
  return "";
}

std::string find_python(const std::string& argv0) {
  if (const char* venv = std::getenv("VIRTUAL_ENV"); venv && *venv) {
    const fs::path python = fs::path(venv) / "bin" / "python";
    if (is_program(python)) return python;
  }
  // The link in a virtual environment's bin counts, not the file it points at.
  const fs::path self = find_program(argv0);
  if (!self.empty() && is_program(self.parent_path() / "python3")) return self.parent_path() / "python3";
  for (const char* name : {"python3", "python"}) {
    if (std::string found = find_program(name); !found.empty()) return found;
  }
  throw ConfigError(
      "found no python: neither in VIRTUAL_ENV, nor beside the zeropage command, nor in PATH; activate the environment "
      "that has torch");
}

Port claim_port(int wanted) {
  if (auto port = try_port(wanted)) return std::move(*port);
  for (int attempt = 0; attempt < 100; ++attempt) {
    if (auto port = try_port(0)) return std::move(*port);
  }
  throw IoError(fmt::format("port {} is taken and no free one was found; give one with --master_port", wanted));
}

std::string make_job_token() {
  std::array<unsigned char, 16> bits{};
  if (::getrandom(bits.data(), bits.size(), 0) != static_cast<ssize_t>(bits.size())) {
    throw_errno("cannot read random bits for the job's token", "the kernel must offer getrandom");
  }
  std::string token;
  for (unsigned char byte : bits) token += fmt::format("{:02x}", byte);
  return token;
}

}  // namespace zeropage::launch
