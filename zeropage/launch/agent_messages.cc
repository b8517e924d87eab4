#include <fmt/format.h>
#include <fmt/ranges.h>

#include <charconv>

#include "zeropage/base/error.h"
#include "zeropage/launch/agent.h"
#include "zeropage/launch/wire.h"

namespace zeropage::launch {
namespace {

/// Takes fields in the order in which they were packed.
class Fields {
 public:
  explicit Fields(std::string_view bytes) : fields_(unpack(bytes)) {}

  std::string text() {
    if (next_ == fields_.size())
      throw IoError("a message of the launcher is too short; are both hosts' versions the same?");
    return fields_[next_++];
  }
  int number() {
    const std::string digits = text();
    int value = 0;
    if (std::from_chars(digits.data(), digits.data() + digits.size(), value).ec != std::errc()) {
      throw IoError(
          "a message of the launcher has text where a number is expected; are both hosts' versions the same?");
    }
    return value;
  }
  bool flag() { return number() != 0; }
  std::vector<std::string> strings() { return unpack(text()); }
  std::vector<int> numbers() {
    Fields list(text());
    std::vector<int> values;
    while (!list.at_end()) values.push_back(list.number());
    return values;
  }
  bool at_end() const { return next_ == fields_.size(); }

 private:
  std::vector<std::string> fields_;
  std::size_t next_ = 0;
};

std::string pack_numbers(const std::vector<int>& numbers) {
  std::vector<std::string> fields;
  for (int number : numbers) fields.push_back(std::to_string(number));
  return pack(fields);
}

}  // namespace

std::string encode(const Question& q) {
  return pack({q.folder, q.script, q.python, q.module ? "1" : "0", q.no_python ? "1" : "0", q.all_gpus ? "1" : "0",
               std::to_string(q.port)});
}

Question decode_question(std::string_view bytes) {
  Fields fields(bytes);
  Question question;
  question.folder = fields.text();
  question.script = fields.text();
  question.python = fields.text();
  question.module = fields.flag();
  question.no_python = fields.flag();
  question.all_gpus = fields.flag();
  question.port = fields.number();
  return question;
}

std::string encode(const HostReport& report) {
  const Host& host = report.host;
  return pack({report.version, report.torch, report.address, report.network, pack(report.errors), pack(host.gpus),
               pack_numbers(host.cores), pack_numbers(host.units), host.omp_threads_set ? "1" : "0", host.python,
               std::to_string(host.port)});
}

HostReport decode_report(std::string_view bytes) {
  Fields fields(bytes);
  HostReport report;
  report.version = fields.text();
  report.torch = fields.text();
  report.address = fields.text();
  report.network = fields.text();
  report.errors = fields.strings();
  report.host.gpus = fields.strings();
  report.host.cores = fields.numbers();
  report.host.units = fields.numbers();
  report.host.omp_threads_set = fields.flag();
  report.host.python = fields.text();
  report.host.port = fields.number();
  return report;
}

std::string encode(const std::vector<RankPlan>& ranks) {
  std::vector<std::string> fields;
  for (const RankPlan& rank : ranks) {
    std::vector<std::string> env;
    for (const auto& [name, value] : rank.env) env.insert(env.end(), {name, value});
    fields.insert(fields.end(),
                  {std::to_string(rank.rank), rank.host, pack(rank.argv), pack(env), pack_numbers(rank.cores)});
  }
  return pack(fields);
}

std::vector<RankPlan> decode_ranks(std::string_view bytes) {
  std::vector<RankPlan> ranks;
  for (Fields fields(bytes); !fields.at_end();) {
    RankPlan rank;
    rank.rank = fields.number();
    rank.host = fields.text();
    rank.argv = fields.strings();
    const std::vector<std::string> env = fields.strings();
    for (std::size_t i = 0; i + 1 < env.size(); i += 2) rank.env.emplace_back(env[i], env[i + 1]);
    rank.cores = fields.numbers();
    ranks.push_back(std::move(rank));
  }
  return ranks;
}

}  // namespace zeropage::launch
