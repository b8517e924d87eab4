#include "zeropage/comm/meeting_socket.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <netdb.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <future>
#include <memory>
#include <thread>

#include "zeropage/base/blocking.h"
#include "zeropage/base/error.h"

namespace zeropage::comm {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

constexpr milliseconds kRetryDelay{100};
constexpr milliseconds kAttemptPatience{3'000};  // then the next address is tried

milliseconds left_until(Clock::time_point deadline) {
  return std::max(std::chrono::ceil<milliseconds>(deadline - Clock::now()), milliseconds(0));
}

/// The answer of the resolver.
struct Resolved {
  int error = 0;  ///< error code of getaddrinfo
  std::vector<HostNumber> addresses;
};

HostNumber host_number(const sockaddr* address) {
  char text[INET6_ADDRSTRLEN] = "";
  if (address->sa_family == AF_INET6) {
    const in6_addr& ip = reinterpret_cast<const sockaddr_in6*>(address)->sin6_addr;
    ::inet_ntop(AF_INET6, &ip, text, sizeof(text));
    return {text, true, IN6_IS_ADDR_LOOPBACK(&ip) != 0};
  }
  const in_addr& ip = reinterpret_cast<const sockaddr_in*>(address)->sin_addr;
  ::inet_ntop(AF_INET, &ip, text, sizeof(text));
  return {text, false, (ntohl(ip.s_addr) >> 24) == 127};
}

Resolved ask_resolver(const std::string& host) {
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* all = nullptr;
  Resolved answer;
  answer.error = ::getaddrinfo(host.c_str(), nullptr, &hints, &all);
  if (answer.error != 0) return answer;
  for (const addrinfo* one = all; one != nullptr; one = one->ai_next) {
    if (one->ai_family == AF_INET || one->ai_family == AF_INET6) answer.addresses.push_back(host_number(one->ai_addr));
  }
  ::freeaddrinfo(all);
  return answer;
}

/// The resolver has no timeout that could be set; a thread that is stuck in it is abandoned.
std::future<Resolved> ask_in_background(const std::string& host) {
  auto promise = std::make_shared<std::promise<Resolved>>();
  auto answer = promise->get_future();
  std::thread([promise, host] { promise->set_value(ask_resolver(host)); }).detach();
  return answer;
}

/// An address and port in the form of the system calls.
struct SocketAddress {
  sockaddr_storage storage{};
  socklen_t bytes = 0;

  SocketAddress(const std::string& text, bool is_ip6, std::uint16_t port) {
    if (is_ip6) {
      auto* address = reinterpret_cast<sockaddr_in6*>(&storage);
      address->sin6_family = AF_INET6;
      address->sin6_port = htons(port);
      ::inet_pton(AF_INET6, text.c_str(), &address->sin6_addr);
      bytes = sizeof(*address);
    } else {
      auto* address = reinterpret_cast<sockaddr_in*>(&storage);
      address->sin_family = AF_INET;
      address->sin_port = htons(port);
      ::inet_pton(AF_INET, text.c_str(), &address->sin_addr);
      bytes = sizeof(*address);
    }
  }
  const sockaddr* get() const { return reinterpret_cast<const sockaddr*>(&storage); }
};

/// None, and errno, on failure.
Descriptor try_listen(const HostNumber& address, std::uint16_t port) {
  Descriptor socket(::socket(address.is_ip6 ? AF_INET6 : AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (!socket) return socket;
  const int yes = 1;
  ::setsockopt(socket.get(), SOL_SOCKET, SO_REUSEADDR, &yes, sizeof(yes));  // connections in TIME_WAIT do not matter
  const SocketAddress at(address.text, address.is_ip6, port);
  if (::bind(socket.get(), at.get(), at.bytes) == 0 && ::listen(socket.get(), SOMAXCONN) == 0) return socket;
  const int reason = errno;
  socket.reset();
  errno = reason;
  return socket;
}

/// Whether the kernel has connected the socket with itself, as it may do if no program listens at a port from its own
/// range.
bool is_its_own_peer(int socket) {
  sockaddr_storage self{}, peer{};
  socklen_t self_bytes = sizeof(self), peer_bytes = sizeof(peer);
  return ::getsockname(socket, reinterpret_cast<sockaddr*>(&self), &self_bytes) == 0 &&
         ::getpeername(socket, reinterpret_cast<sockaddr*>(&peer), &peer_bytes) == 0 && self_bytes == peer_bytes &&
         std::memcmp(&self, &peer, self_bytes) == 0;
}

/// 0: a program listens there; otherwise the reason of the failure.
int try_connect(const HostNumber& address, std::uint16_t port, milliseconds patience) {
  const Descriptor socket(::socket(address.is_ip6 ? AF_INET6 : AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!socket) return errno;
  const SocketAddress at(address.text, address.is_ip6, port);
  if (::connect(socket.get(), at.get(), at.bytes) == 0) return is_its_own_peer(socket.get()) ? ECONNREFUSED : 0;
  if (errno != EINPROGRESS) return errno;
  pollfd entry{socket.get(), POLLOUT, 0};
  const auto deadline = Clock::now() + patience;
  int ready = 0;
  do {
    ready = ::poll(&entry, 1, static_cast<int>(left_until(deadline).count()));
  } while (ready < 0 && errno == EINTR);
  if (ready <= 0) return ETIMEDOUT;
  int reason = 0;
  socklen_t bytes = sizeof(reason);
  ::getsockopt(socket.get(), SOL_SOCKET, SO_ERROR, &reason, &bytes);
  return reason == 0 && is_its_own_peer(socket.get()) ? ECONNREFUSED : reason;
}

}  // namespace

std::vector<HostNumber> resolve_host(const std::string& host, const std::string& source, milliseconds timeout) {
  const auto blocking = enter_blocking();
  const auto deadline = Clock::now() + timeout;
  while (true) {
    auto answer = ask_in_background(host);
    if (answer.wait_for(left_until(deadline)) != std::future_status::ready) {
      throw TimeoutError(
          fmt::format("the resolver did not say within {} ms where host {} is ({})", timeout.count(), host, source));
    }
    Resolved resolved = answer.get();
    if (resolved.error == 0 && !resolved.addresses.empty()) return std::move(resolved.addresses);
    if (resolved.error != EAI_AGAIN || left_until(deadline) < kRetryDelay) {
      throw ConfigError(
          fmt::format("host {} does not resolve on this host: {} ({})", host, ::gai_strerror(resolved.error), source));
    }
    std::this_thread::sleep_for(kRetryDelay);
  }
}

Descriptor listen_for_ranks(const std::vector<HostNumber>& addresses, const Meeting& meeting) {
  std::vector<HostNumber> wanted;
  std::ranges::copy_if(addresses, std::back_inserter(wanted), [](const HostNumber& one) { return !one.is_loopback; });
  // Only loopback is meant if it was given as a numeric address.
  const bool is_number = addresses.size() == 1 && addresses[0].text == meeting.address;
  if (is_number) wanted = addresses;
  wanted.push_back({"::", true, false});  // all addresses; without IPv6, all of IPv4
  wanted.push_back({"0.0.0.0", false, false});
  for (const HostNumber& address : wanted) {
    if (Descriptor socket = try_listen(address, meeting.port)) return socket;
    if (errno == EADDRNOTAVAIL || errno == EAFNOSUPPORT) continue;
    break;
  }
  throw IoError(fmt::format("cannot listen at {}:{}: {}; choose another port (--master_port, MASTER_PORT)",
                            meeting.address, meeting.port, std::strerror(errno)));
}

void await_listener(const std::vector<HostNumber>& addresses, const Meeting& meeting, milliseconds timeout) {
  const auto blocking = enter_blocking();
  const auto deadline = Clock::now() + timeout;
  std::string reasons;
  do {
    reasons.clear();
    for (const HostNumber& address : addresses) {
      const int reason = try_connect(address, meeting.port, std::min(kAttemptPatience, left_until(deadline)));
      if (reason == 0) return;
      reasons += fmt::format("{}{}: {}", reasons.empty() ? "" : ", ", address.text, std::strerror(reason));
    }
    std::this_thread::sleep_for(std::min(kRetryDelay, left_until(deadline)));
  } while (Clock::now() < deadline);
  throw TimeoutError(
      fmt::format("nobody answered there for {} ms ({}); rank 0 did not start or is on another host, or a firewall is "
                  "between: see rank 0's output, and set --master_addr (MASTER_ADDR) to an address of its host that "
                  "this one reaches",
                  timeout.count(), reasons));
}

}  // namespace zeropage::comm
