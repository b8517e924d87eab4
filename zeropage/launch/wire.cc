#include "zeropage/launch/wire.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "zeropage/base/error.h"

namespace zeropage::launch {
namespace {

constexpr std::size_t kHeaderBytes = 9;
constexpr std::size_t kMaxPreambleBytes = 64 * 1024;

void put_number(std::string& bytes, std::uint32_t number) {
  for (int shift = 0; shift < 32; shift += 8) bytes += static_cast<char>(number >> shift & 0xff);
}

std::uint32_t get_number(std::string_view bytes) {
  std::uint32_t number = 0;
  for (int i = 3; i >= 0; --i) number = number << 8 | static_cast<unsigned char>(bytes[i]);
  return number;
}

}  // namespace

Channel::Channel(Descriptor in, Descriptor out, bool skip_to_greeting)
    : in_(std::move(in)), out_(std::move(out)), greeted_(!skip_to_greeting) {
  for (int fd : {in_.get(), out_.get()}) ::fcntl(fd, F_SETFL, ::fcntl(fd, F_GETFL) | O_NONBLOCK);
}

void Channel::send(FrameKind kind, std::int32_t number, std::string_view payload) {
  if (!out_) return;
  queue_ += static_cast<char>(kind);
  put_number(queue_, static_cast<std::uint32_t>(number));
  put_number(queue_, static_cast<std::uint32_t>(payload.size()));
  queue_ += payload;
}

void Channel::write_some() {
  while (wants_write()) {
    const ssize_t written = ::write(out_.get(), queue_.data(), queue_.size());
    if (written < 0 && errno == EINTR) continue;
    if (written < 0 && errno == EAGAIN) return;
    if (written < 0) {
      out_.reset();
      queue_.clear();
      return;
    }
    queue_.erase(0, static_cast<std::size_t>(written));
  }
}

bool Channel::read_some(const std::function<void(const Frame&)>& on_frame) {
  char buffer[64 * 1024];
  const ssize_t got = ::read(in_.get(), buffer, sizeof(buffer));
  if (got < 0 && (errno == EAGAIN || errno == EINTR)) return true;
  if (got <= 0) return false;
  received_.append(buffer, static_cast<std::size_t>(got));
  if (!greeted_) {
    const std::size_t at = received_.find(kGreeting);
    if (at == std::string::npos && received_.size() > kMaxPreambleBytes) {
      throw IoError(
          "the login shell there writes too much before the agent starts; it must write nothing without a terminal");
    }
    preamble_ = received_.substr(0, at);
    if (at == std::string::npos) return true;
    greeted_ = true;
    received_.erase(0, at + kGreeting.size());
  }
  std::size_t taken = 0;
  while (received_.size() - taken >= kHeaderBytes) {
    const std::string_view rest = std::string_view(received_).substr(taken);
    const std::size_t size = get_number(rest.substr(5));
    if (static_cast<FrameKind>(rest[0]) > FrameKind::kDone || size > kMaxPayloadBytes) {
      throw IoError("the received bytes are no message of the launcher; are both hosts' versions the same?");
    }
    if (rest.size() < kHeaderBytes + size) break;
    const Frame frame{static_cast<FrameKind>(rest[0]), static_cast<std::int32_t>(get_number(rest.substr(1))),
                      std::string(rest.substr(kHeaderBytes, size))};
    taken += kHeaderBytes + size;
    on_frame(frame);
  }
  received_.erase(0, taken);
  return true;
}

}  // namespace zeropage::launch
