/// \file
/// The sections scheduler and scheduler.params of the five schedules.
#include "zeropage/config/tables.h"

namespace zeropage::config {

using enum Status;

namespace {

Section scheduler_params(const std::string& type, std::string doc, std::vector<Key> keys) {
  Section section{"scheduler.params", std::move(doc)};
  section.variant_of = "scheduler.type";
  section.variants = {type};
  section.keys = std::move(keys);
  section.keys.push_back(integer("last_batch_iteration", -1, kSupported,
                                 "The step after which the schedule continues; -1: from the start.")
                             .at_least(-1));
  return section;
}

Key warmup_num_steps() {
  return integer("warmup_num_steps", 1000, kSupported, "Steps of the warm-up; fewer than 2 count as 2.").at_least(0);
}

Key warmup_type() {
  return string("warmup_type", "log", kSupported, "Shape of the warm-up: log rises as ln(i+1)/ln(N).")
      .one_of({{"log"}, {"linear"}});
}

Key warmup_min_lr() {
  return real("warmup_min_lr", 0.0, kSupported, "Learning rate at the start of the warm-up.").at_least(0);
}

Key warmup_max_lr() {
  return real("warmup_max_lr", {}, kSupported, "Learning rate after the warm-up; null: each parameter group's own.")
      .at_least(0)
      .deepspeed_default("the first group's, or 0.001");
}

Key total_num_steps() {
  return integer("total_num_steps", {}, kSupported, "Step at which the decay ends.").at_least(1).must_be_given();
}

Section one_cycle() {
  return scheduler_params(
      "OneCycle", "The rate rises, falls, then decays; the momentum (beta1) changes in the opposite direction.",
      {
          real("cycle_min_lr", {}, kSupported, "Learning rate at the ends of the cycle.").at_least(0).must_be_given(),
          real("cycle_max_lr", {}, kSupported, "Learning rate in the middle of the cycle.").at_least(0).must_be_given(),
          real("decay_lr_rate", 0.0, kSupported, "Decay per decay step after the cycle.").at_least(0),
          integer("cycle_first_step_size", 2000, kSupported, "Steps of the rising half.").at_least(1),
          integer("cycle_second_step_size", {}, kSupported, "Steps of the falling half; null: as many as rising.")
              .at_least(1),
          integer("cycle_first_stair_count", 0, kSupported, "Number of stairs while rising; 0: a straight line.")
              .at_least(0),
          integer("cycle_second_stair_count", {}, kSupported,
                  "Number of stairs while falling; null: as many as rising.")
              .at_least(0),
          integer("decay_step_size", 0, kSupported, "Steps of one decay step; 0: no decay.").at_least(0),
          flag("cycle_momentum", true, kSupported, "Whether the momentum changes, too."),
          real("cycle_min_mom", 0.8, kSupported, "Momentum in the middle of the cycle.").from_up_to(0, 1),
          real("cycle_max_mom", 0.9, kSupported, "Momentum at the ends of the cycle.").from_up_to(0, 1),
          real("decay_mom_rate", 0.0, kSupported, "Growth of the momentum per decay step.").at_least(0),
      });
}

Section range_test() {
  return scheduler_params("LRRangeTest", "A rising learning rate, to find the largest rate with which training works.",
                          {
                              real("lr_range_test_min_lr", 1e-3, kSupported, "Learning rate at the start.").at_least(0),
                              integer("lr_range_test_step_size", 2000, kSupported, "Steps per interval.").at_least(1),
                              real("lr_range_test_step_rate", 1.0, kSupported, "Growth per interval.").at_least(0),
                              flag("lr_range_test_staircase", false, kSupported, "Rise in stairs instead of a line."),
                          });
}

}  // namespace

std::vector<Section> scheduler_tables() {
  Section scheduler{"scheduler", "The learning-rate schedule; it advances once per step that is not skipped."};
  scheduler.keys = {string("type", {}, kSupported, "Name of the schedule.")
                        .one_of({{"WarmupLR"}, {"WarmupDecayLR"}, {"WarmupCosineLR"}, {"OneCycle"}, {"LRRangeTest"}})};
  Section warmup = scheduler_params("WarmupLR", "Warm-up, then constant.",
                                    {warmup_min_lr(), warmup_max_lr(), warmup_num_steps(), warmup_type()});
  Section decay =
      scheduler_params("WarmupDecayLR", "Warm-up, then linearly to 0.",
                       {total_num_steps(), warmup_min_lr(), warmup_max_lr(), warmup_num_steps(), warmup_type()});
  Section cosine = scheduler_params(
      "WarmupCosineLR", "Warm-up, then a cosine decay; all values are ratios of each parameter group's learning rate.",
      {total_num_steps(), real("warmup_min_ratio", 0.0, kSupported, "Ratio at the start of the warm-up.").between(0, 1),
       warmup_num_steps(), real("cos_min_ratio", 1e-4, kSupported, "Ratio at the end of the cosine.").between(0, 1),
       warmup_type()});
  return {std::move(scheduler), std::move(warmup), std::move(decay), std::move(cosine), one_cycle(), range_test()};
}

}  // namespace zeropage::config
