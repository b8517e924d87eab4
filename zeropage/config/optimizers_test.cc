// Tests of the table of optimizers and of the code that depends on it.
#include "zeropage/config/optimizers.h"

#include <gtest/gtest.h>

#include <set>

#include "zeropage/base/error.h"
#include "zeropage/config/schema.h"

namespace zeropage::config {
namespace {

// Catches an entry that the configuration does not have, or has with other keys, and a default outside the range.
TEST(Optimizers, EveryEntryHasItsSection) {
  for (const auto& entry : optimizer_entries()) {
    const Section* section = find_section("optimizer.params", entry.type);
    ASSERT_NE(section, nullptr) << entry.type;
    for (const auto& hyperparameter : entry.hyperparameters) {
      const Key* key = section->find(hyperparameter.key.name);
      ASSERT_NE(key, nullptr) << entry.type << " " << hyperparameter.name;
      EXPECT_EQ(key->default_value, hyperparameter.key.default_value);
      if (const auto* number = std::get_if<double>(&key->default_value)) {
        EXPECT_TRUE(key->in_range(*number)) << key->name;
      }
    }
  }
}

// Catches a name that means different fields in two entries, and a value that was set and that `get` does not return.
TEST(Optimizers, ANameMeansTheSameInAllEntries) {
  for (const auto& entry : optimizer_entries()) {
    for (const auto& hyperparameter : entry.hyperparameters) {
      OptimizerParams params;
      const auto before = hyperparameter.get(params);
      HyperparameterValue changed = std::pair(0.25, 0.5);
      if (std::holds_alternative<double>(before)) changed = 0.125;
      if (const auto* yes = std::get_if<bool>(&before)) changed = !*yes;
      hyperparameter.set(params, changed);
      EXPECT_EQ(find_hyperparameter(hyperparameter.name).get(params), changed) << entry.type << hyperparameter.name;
      EXPECT_NE(params, OptimizerParams{}) << hyperparameter.name;
    }
  }
  EXPECT_THROW(find_hyperparameter("bettas"), ConfigError);
}

// Catches a pair that is accepted as a number, and a flag that is refused because a checkpoint stores it as a number.
TEST(Optimizers, ValuesOfAnotherTypeAreConvertedOrRefused) {
  OptimizerParams params;
  find_hyperparameter("nesterov").set(params, 1.0);
  EXPECT_TRUE(params.nesterov);
  EXPECT_THROW(find_hyperparameter("lr").set(params, std::pair(0.1, 0.2)), ConfigError);
  EXPECT_THROW(find_hyperparameter("betas").set(params, 0.9), ConfigError);
}

// Catches memory that is planned for states that an optimizer does not have, and two kinds with the same name.
TEST(Optimizers, StatesAreCounted) {
  std::set<std::string> names;
  for (const auto& entry : optimizer_entries()) {
    Optimizer optimizer{entry.kind, {}};
    optimizer.params.momentum = 0.9;
    const int states = optimizer_state_count(optimizer);
    EXPECT_EQ(states, (entry.states[0] != nullptr) + (entry.states[1] != nullptr)) << entry.type;
    optimizer.params.momentum = 0.0;
    EXPECT_EQ(optimizer_state_count(optimizer), entry.kind == OptimizerKind::kSgd ? 0 : states);
    EXPECT_EQ(find_optimizer(std::string_view(entry.type)), &entry);
    EXPECT_TRUE(names.insert(optimizer_name(entry.kind)).second);
  }
  EXPECT_EQ(optimizer_state_count({OptimizerKind::kNone, {}}), 2) << "counts as AdamW";
  EXPECT_EQ(optimizer_state_count({OptimizerKind::kClient, {}}), 0);
  EXPECT_EQ(optimizer_name(OptimizerKind::kNone), "");
}

}  // namespace
}  // namespace zeropage::config
