// The messages between the launcher and its agents, as CBOR: objects with the names of the structs' members.
#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "zeropage/base/error.h"
#include "zeropage/base/machine_json.h"
#include "zeropage/launch/agent.h"

namespace zeropage::launch {

NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(Question, folder, script, python, module, no_python, all_gpus, port)
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(Host, gpus, cores, units, omp_threads_set, python, port)
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(HostReport, version, torch, address, network, host, errors)
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(RankPlan, rank, host, argv, env, cores)

namespace {

constexpr int kMaxDepth = 8;

template <class Message>
std::string encode_message(const Message& message) {
  std::string bytes;
  nlohmann::json::to_cbor(message, bytes);
  return bytes;
}

template <class Message>
Message decode_message(std::string_view bytes) {
  try {
    return json::parse_machine_cbor(bytes, kMaxDepth).get<Message>();
  } catch (const std::exception& error) {  // of the parser, or of a member that is missing or has another type
    throw IoError(
        fmt::format("a message of the launcher cannot be read ({}); are both hosts' versions the same?", error.what()));
  }
}

}  // namespace

std::string encode(const Question& question) { return encode_message(question); }
std::string encode(const HostReport& report) { return encode_message(report); }
std::string encode(const std::vector<RankPlan>& ranks) { return encode_message(ranks); }

Question decode_question(std::string_view bytes) { return decode_message<Question>(bytes); }
HostReport decode_report(std::string_view bytes) { return decode_message<HostReport>(bytes); }
std::vector<RankPlan> decode_ranks(std::string_view bytes) { return decode_message<std::vector<RankPlan>>(bytes); }

}  // namespace zeropage::launch
