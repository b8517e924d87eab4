/// \file
/// The protocol between the launcher and the agents on other hosts, over the standard streams of ssh.
///
/// 1. The agent starts with one line, kGreeting. Everything before it on its stdout (output of the login shell) is
///    skipped.
/// 2. Then both send frames: kind (1 byte), number (4), payload length (4, little-endian), payload. The payload of
///    kAsk, kReport and kStart is a document in CBOR (agent_messages.cc).
/// 3. Launcher: kAsk, kStart, then kSignal and kKill. Agent: kReport, then kOut, kErr and kEnded of its ranks, kNotice,
///    and kDone when all processes of the job on its host have ended.
/// 4. Both send kBeat every kBeatPeriod. If nothing arrives for kBeatPatience, the other end counts as dead.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>

#include "zeropage/base/descriptor.h"

namespace zeropage::launch {

inline constexpr std::string_view kGreeting = "zeropage-agent 1\n";
inline constexpr std::chrono::milliseconds kBeatPeriod{500};
inline constexpr std::chrono::milliseconds kBeatPatience{3'500};

enum class FrameKind : std::uint8_t {
  kAsk,
  kStart,
  kSignal,
  kKill,
  kBeat,
  kReport,
  kOut,
  kErr,
  kEnded,
  kNotice,
  kDone
};

struct Frame {
  FrameKind kind;
  std::int32_t number = 0;  ///< a rank, or a signal
  std::string payload;
};

/// One end of the connection. Nothing here blocks: the owner polls.
class Channel {
 public:
  /// `greeting`: skip everything up to kGreeting first.
  Channel(Descriptor in, Descriptor out, bool skip_to_greeting);

  int in_fd() const { return in_.get(); }
  int out_fd() const { return out_.get(); }
  bool wants_write() const { return !queue_.empty() && out_; }
  bool is_full() const { return queue_.size() >= kMaxQueuedBytes; }

  void send_greeting() { queue_ += kGreeting; }
  void send(FrameKind kind, std::int32_t number = 0, std::string_view payload = {});

  /// Writes as much as certainly does not block. When the other end has closed, the rest is dropped.
  void write_some();

  /// Reads the available bytes and calls `on_frame` for every complete frame. False: the other end has closed. Errors:
  /// IoError when the bytes are not frames.
  bool read_some(const std::function<void(const Frame&)>& on_frame);

  /// The output before the greeting, for messages.
  const std::string& preamble() const { return preamble_; }

  static constexpr std::size_t kMaxQueuedBytes = 1 << 20;
  static constexpr std::size_t kMaxPayloadBytes = 64 << 20;

 private:
  Descriptor in_;
  Descriptor out_;
  bool greeted_;
  std::string preamble_;
  std::string received_;
  std::string queue_;
};

}  // namespace zeropage::launch
