#include "zeropage/launch/host.h"

#include <arpa/inet.h>
#include <fmt/format.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
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
#include "zeropage/launch/spawn.h"
#include "zeropage/launch/system_call.h"

namespace zeropage::launch {
namespace {

namespace fs = std::filesystem;

constexpr int kPythonTimeout_ms = 20'000;

bool is_program(const fs::path& path) {
  std::error_code error;
  return fs::is_regular_file(path, error) && ::access(path.c_str(), X_OK) == 0;
}

/// Listens at port `number` (0: the kernel chooses) on all addresses and closes the socket. Returns the port, or 0 if
/// it is taken.
int probe_port(int number) {
  const Descriptor probe(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
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

/// Claims the port among launchers: a name in the kernel's table of local sockets. Only one process can hold it, and
/// the kernel frees it when the process ends. No descriptor if another launcher has it.
Descriptor claim_among_launchers(int number) {
  Descriptor claim(::socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0));
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
  Descriptor claim = claim_among_launchers(number);
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

void check_script(const std::string& script, bool module, bool no_python) {
  if (module) return;
  if (no_python) {
    if (!find_program(script).empty()) return;
    throw ConfigError(
        fmt::format("--no_python {}: expected a program that may be executed; give its path, or make it "
                    "executable (chmod +x)",
                    script));
  }
  std::error_code error;
  if (fs::exists(script, error)) return;
  throw ConfigError(
      fmt::format("the script {} does not exist here; check its path (a module needs --module, a program "
                  "--no_python)",
                  script));
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
  // Use the link in a virtual environment's bin, not the file to which it points.
  const fs::path self = find_program(argv0);
  if (!self.empty() && is_program(self.parent_path() / "python3")) return self.parent_path() / "python3";
  for (const char* name : {"python3", "python"}) {
    if (std::string found = find_program(name); !found.empty()) return found;
  }
  throw ConfigError(
      "found no python: neither in VIRTUAL_ENV, nor in the folder of the zeropage command, nor in PATH; activate the "
      "environment "
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

std::string torch_version(const std::string& python) {
  constexpr const char* kProgram =
      "import importlib.metadata as m\ntry: print(m.version('torch'))\nexcept m.PackageNotFoundError: print('none')";
  RankPlan plan;
  plan.argv = {python, kSafePath, "-c", kProgram};
  Pipe out = make_pipe();
  SpawnContext context;
  context.out_fd = out.write.get();
  const pid_t pid = spawn_rank(plan, context);
  out.write.reset();
  std::string version;
  char buffer[256];
  pollfd fd{out.read.get(), POLLIN, 0};
  while (::poll(&fd, 1, kPythonTimeout_ms) > 0) {
    const ssize_t got = ::read(fd.fd, buffer, sizeof(buffer));
    if (got <= 0) break;
    version.append(buffer, static_cast<std::size_t>(got));
  }
  ::kill(pid, SIGKILL);
  ::waitpid(pid, nullptr, 0);
  while (!version.empty() && version.back() == '\n') version.pop_back();
  if (version.empty()) {
    throw IoError(fmt::format("{} does not report its version of torch; check that it runs: {} -c 'import torch'",
                              python, python));
  }
  return version;
}

HostAddress host_address(const char* ssh_connection) {
  std::istringstream words{std::string(ssh_connection ? ssh_connection : "")};
  std::string client, client_port, reached;
  words >> client >> client_port >> reached;
  HostAddress found{"127.0.0.1", "lo"};
  ifaddrs* all = nullptr;
  if (::getifaddrs(&all) != 0) return found;
  for (const ifaddrs* one = all; one; one = one->ifa_next) {
    if (!one->ifa_addr || (one->ifa_flags & IFF_LOOPBACK) || !(one->ifa_flags & IFF_UP)) continue;
    const int family = one->ifa_addr->sa_family;
    char text[INET6_ADDRSTRLEN] = "";
    if (family == AF_INET) {
      ::inet_ntop(family, &reinterpret_cast<const sockaddr_in*>(one->ifa_addr)->sin_addr, text, sizeof(text));
    } else if (family == AF_INET6) {
      ::inet_ntop(family, &reinterpret_cast<const sockaddr_in6*>(one->ifa_addr)->sin6_addr, text, sizeof(text));
    }
    if (text == reached && !reached.empty()) {
      found = {text, one->ifa_name};
      break;
    }
    if (family == AF_INET && found.network == "lo") found = {text, one->ifa_name};
  }
  ::freeifaddrs(all);
  return found;
}

}  // namespace zeropage::launch
