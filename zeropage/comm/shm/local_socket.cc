#include "zeropage/comm/shm/local_socket.h"

#include <fmt/format.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstring>

#include "zeropage/base/error.h"

namespace zeropage::comm {
namespace {

Descriptor make_socket() {
  Descriptor made(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!made) throw IoError(fmt::format("cannot make a local socket: {}", std::strerror(errno)));
  return made;
}

struct LocalAddress {
  sockaddr_un address{};
  socklen_t bytes = 0;

  explicit LocalAddress(const std::string& name) {
    address.sun_family = AF_UNIX;
    const std::string whole = "zeropage/" + name;
    const std::size_t length = std::min(whole.size(), sizeof(address.sun_path) - 1);
    std::memcpy(address.sun_path + 1, whole.data(), length);  // a leading zero byte: not in the file system
    bytes = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + length);
  }
  const sockaddr* get() const { return reinterpret_cast<const sockaddr*>(&address); }
};

/// The process at the other end.
ucred peer_of(int socket) {
  ucred peer{};
  socklen_t bytes = sizeof(peer);
  if (::getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &peer, &bytes) != 0) {
    throw IoError(fmt::format("cannot see whose a local socket is: {}", std::strerror(errno)));
  }
  return peer;
}

/// A message of one byte and one descriptor.
struct Envelope {
  char byte = 'f';
  iovec part{&byte, 1};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  msghdr message{};

  Envelope() {
    message.msg_iov = &part;
    message.msg_iovlen = 1;
    message.msg_control = control;
    message.msg_controllen = sizeof(control);
  }
  Envelope(const Envelope&) = delete;
};

void send_file(int socket, int fd) {
  Envelope envelope;
  cmsghdr* header = CMSG_FIRSTHDR(&envelope.message);
  header->cmsg_level = SOL_SOCKET;
  header->cmsg_type = SCM_RIGHTS;
  header->cmsg_len = CMSG_LEN(sizeof(int));
  std::memcpy(CMSG_DATA(header), &fd, sizeof(fd));
  // One byte fits into the buffer of a new connection; errors of closed connections do not matter.
  (void)!::sendmsg(socket, &envelope.message, MSG_NOSIGNAL);
}

Descriptor receive_file(int socket) {
  Envelope envelope;
  if (::recvmsg(socket, &envelope.message, MSG_CMSG_CLOEXEC) <= 0) return Descriptor();
  const cmsghdr* header = CMSG_FIRSTHDR(&envelope.message);
  if (header == nullptr || header->cmsg_type != SCM_RIGHTS) return Descriptor();
  int fd = -1;
  std::memcpy(&fd, CMSG_DATA(header), sizeof(fd));
  return Descriptor(fd);
}

/// A connection to the process that offers `name`; none if there is no such process.
Descriptor connect_to(const std::string& name) {
  Descriptor socket = make_socket();
  const LocalAddress address(name);
  if (::connect(socket.get(), address.get(), address.bytes) == 0) return socket;
  if (errno == ECONNREFUSED || errno == EAGAIN) return Descriptor();  // nobody, or more have asked than were served
  throw IoError(fmt::format("cannot reach the local socket {}: {}", name, std::strerror(errno)));
}

}  // namespace

FileOffer::FileOffer(const std::string& name) : socket_(make_socket()) {
  const LocalAddress address(name);
  if (::bind(socket_.get(), address.get(), address.bytes) == 0 && ::listen(socket_.get(), SOMAXCONN) == 0) return;
  const int reason = errno;
  const Descriptor other = reason == EADDRINUSE ? connect_to(name) : Descriptor();
  const ucred owner = other ? peer_of(other.get()) : ucred{};
  throw PeerError(fmt::format(
      "cannot offer shared memory under the name {}: {}{}; choose another job name", name, std::strerror(reason),
      other ? fmt::format(" by process {} of user {}: another job that is starting", owner.pid, owner.uid) : ""));
}

void FileOffer::serve(int fd) const {
  while (true) {
    const Descriptor asking(::accept4(socket_.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
    if (!asking) return;
    if (peer_of(asking.get()).uid == ::geteuid()) send_file(asking.get(), fd);
  }
}

Descriptor request_file(const std::string& name, std::chrono::milliseconds patience) {
  const Descriptor socket = connect_to(name);
  if (!socket) return Descriptor();
  if (const ucred owner = peer_of(socket.get()); owner.uid != ::geteuid()) {
    throw IoError(fmt::format(
        "the name {} belongs to process {} of user {}, this process runs as user {}; choose another job name", name,
        owner.pid, owner.uid, ::geteuid()));
  }
  pollfd entry{socket.get(), POLLIN, 0};
  if (::poll(&entry, 1, static_cast<int>(patience.count())) <= 0) return Descriptor();
  return receive_file(socket.get());
}

}  // namespace zeropage::comm
