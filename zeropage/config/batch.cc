#include "zeropage/config/batch.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <optional>

namespace zeropage::config {
namespace {

constexpr const char* kTrain = "train_batch_size";
constexpr const char* kMicro = "train_micro_batch_size_per_gpu";
constexpr const char* kSteps = "gradient_accumulation_steps";

struct GivenSizes {
  std::optional<std::int64_t> train, micro, steps;
};

/// The number of this key; nullopt if it is absent or "auto".
std::optional<std::int64_t> number_of(const Settings& settings, const char* path) {
  const auto* number = std::get_if<std::int64_t>(&settings.at(path).value);
  return number == nullptr ? std::nullopt : std::optional(*number);
}

bool is_text(const Settings& settings, const char* path) {
  return std::holds_alternative<std::string>(settings.at(path).value);
}

/// "1, 2, 4, ..., 128": the divisors, without the middle ones when there are many.
std::string divisors_text(std::int64_t value) {
  constexpr std::size_t kShown = 8;
  std::vector<std::int64_t> found;
  for (std::int64_t d = 1; d <= value / d && d <= 1'000'000; ++d) {
    if (value % d == 0) found.push_back(d);
  }
  for (std::size_t i = found.size(); i-- > 0;) {
    if (found[i] != value / found[i]) found.push_back(value / found[i]);
  }
  if (found.size() <= kShown) return fmt::format("{}", fmt::join(found, ", "));
  return fmt::format("{}, ..., {}", fmt::join(found.begin(), found.begin() + kShown - 1, ", "), found.back());
}

/// "96" or "96 or 192": the multiples of `unit` next to `value`.
std::string multiples_text(std::int64_t value, std::int64_t unit) {
  const std::int64_t below = value / unit * unit;
  return below == 0 ? fmt::format("{}", unit) : fmt::format("{} or {}", below, below + unit);
}

class Rule {
 public:
  Rule(const Settings& settings, int world_size) : settings_(settings), world_(world_size) {}

  Batch complete(const GivenSizes& given) const {
    if (given.train && given.micro && given.steps) return all_three(given);
    if (given.train && given.micro) return {*given.train, *given.micro, quotient(*given.train, kMicro, *given.micro)};
    if (given.train) {
      const std::int64_t steps = given.steps.value_or(1);
      return {*given.train, quotient(*given.train, kSteps, steps), steps};
    }
    if (given.micro) {
      const std::int64_t steps = given.steps.value_or(1);
      return {product(*given.micro, steps), *given.micro, steps};
    }
    settings_.fail(given.steps ? kSteps : kTrain,
                   fmt::format("expected {} or {}, got {}; write for example \"{}\": 1", kTrain, kMicro,
                               given.steps ? "the accumulation steps alone" : "neither", kMicro));
  }

 private:
  Batch all_three(const GivenSizes& given) const {
    const std::int64_t expected = product(*given.micro, *given.steps);
    if (expected == *given.train) return {*given.train, *given.micro, *given.steps};
    std::string works = fmt::format("{} {}", kTrain, expected);
    const std::int64_t per_micro = product(*given.micro, 1);
    const std::int64_t per_step = product(1, *given.steps);
    if (*given.train % per_micro == 0) works += fmt::format(", or {} {}", kSteps, *given.train / per_micro);
    if (*given.train % per_step == 0) works += fmt::format(", or {} {}", kMicro, *given.train / per_step);
    settings_.fail(kTrain,
                   fmt::format("expected {} {} x {} {} x world size {} = {}, got {}; what would work: {}; or leave "
                               "one of the three out",
                               kMicro, *given.micro, kSteps, *given.steps, world_, expected, *given.train, works));
  }

  /// train / (size x world); an error if it is not an integer.
  std::int64_t quotient(std::int64_t train, const char* name, std::int64_t size) const {
    const std::int64_t unit = product(size, 1);
    if (train % unit == 0) return train / unit;
    const std::string factors = size == 1 ? fmt::format("world size {}", world_)
                                          : fmt::format("{} {} x world size {} = {}", name, size, world_, unit);
    std::string works = fmt::format("{} {}", kTrain, multiples_text(train, unit));
    if (train % world_ == 0) works += fmt::format(", or {} one of {}", name, divisors_text(train / world_));
    settings_.fail(kTrain, fmt::format("expected a multiple of {}, got {} = {} x {} + {}; what would work: {}", factors,
                                       train, unit, train / unit, train % unit, works));
  }

  std::int64_t product(std::int64_t micro, std::int64_t steps) const {
    std::int64_t result = 0;
    if (__builtin_mul_overflow(micro, steps, &result) || __builtin_mul_overflow(result, world_, &result)) {
      settings_.fail(kMicro, fmt::format("expected {} x {} x world size {} to fit in 64 bits, got {} x {} x {}", kMicro,
                                         kSteps, world_, micro, steps, world_));
    }
    return result;
  }

  const Settings& settings_;
  std::int64_t world_;
};

}  // namespace

Batch resolve_batch(Settings& settings, int world_size) {
  GivenSizes given{number_of(settings, kTrain), number_of(settings, kMicro), number_of(settings, kSteps)};
  if (!given.train && !given.micro && is_text(settings, kMicro)) given.micro = 1;
  if (world_size == 0) return {given.train.value_or(0), given.micro.value_or(0), given.steps.value_or(1)};
  const Batch batch = Rule(settings, world_size).complete(given);
  if (!number_of(settings, kTrain)) settings.derive(kTrain, batch.train_batch_size);
  if (!number_of(settings, kMicro)) settings.derive(kMicro, batch.micro_batch_size);
  if (!number_of(settings, kSteps)) settings.derive(kSteps, batch.accumulation_steps);
  return batch;
}

}  // namespace zeropage::config
