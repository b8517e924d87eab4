/// \file
/// optimizer and optimizer.params.
#include "zeropage/config/tables.h"

namespace zeropage::config {

using enum Status;

namespace {

std::vector<Choice> optimizer_types() {
  std::vector<Choice> types = {{"Adam"},   {"AdamW"},    {"Lion"},  {"Adagrad"}, {"SGD"},  {"Lamb"},  {"RMSprop"},
                               {"Adamax"}, {"Adadelta"}, {"NAdam"}, {"RAdam"},   {"ASGD"}, {"Rprop"}, {"Muon"}};
  for (const char* removed : {"OneBitAdam", "ZeroOneAdam", "OneBitLamb"}) types.push_back({removed, kRemoved});
  for (const char* later : {"MuAdam", "MuAdamW", "MuSGD"}) types.push_back({later, kNotBuilt});
  return types;
}

Section params_of(std::vector<std::string> types, std::string doc, std::vector<Key> keys) {
  Section section{"optimizer.params", std::move(doc)};
  section.variant_of = "optimizer.type";
  section.variants = std::move(types);
  section.keys = std::move(keys);
  section.keys.push_back(real("max_grad_norm", {}, kNotBuilt,
                              "Not a parameter of the optimizer: write gradient_clipping at the top level."));
  return section;
}

Key weight_decay_key(const char* doc) { return real("weight_decay", 0.0, kSupported, doc).at_least(0); }
Key lr_key(double lr) { return real("lr", lr, kSupported, "Learning rate.").at_least(0); }
Key betas_key(double beta1, double beta2, const char* doc) {
  return floats("betas", {beta1, beta2}, 2, kSupported, doc).from_up_to(0, 1);
}

std::vector<Key> adam_keys() {
  return {
      lr_key(1e-3),
      betas_key(0.9, 0.999, "Decay of the first and the second moment."),
      real("eps", 1e-8, kSupported, "Added to the root of the second moment.").at_least(0),
      weight_decay_key("Weight decay."),
      flag("bias_correction", true, kSupported, "Divide the moments by 1 - beta^step."),
      flag("adam_w_mode", true, kSupported,
           "Adam only: true: decoupled decay (AdamW); false: L2 added to the gradient."),
      flag("torch_adam", false, kAccepted, "There is one implementation here, and it computes what torch's does."),
      flag("amsgrad", false, kNotBuilt, "Keep the maximum of the second moment."),
      flag("fp32_optimizer_states", true, kNotBuilt,
           "Moments in fp32; for 16 bits write zeropage.optimizer_state_dtype \"bf16\"."),
  };
}

std::vector<Key> adagrad_keys() {
  return {
      lr_key(1e-2),
      real("lr_decay", 0.0, kSupported, "The rate of a step is lr / (1 + steps before * lr_decay).").at_least(0),
      weight_decay_key("L2 added to the gradient."),
      real("initial_accumulator_value", 0.0, kSupported, "What the sum of squares starts with.").at_least(0),
      real("eps", 1e-10, kSupported, "Added to the root of the sum of squares.").at_least(0),
      flag("amsgrad", false, kNotBuilt, "Not a part of Adagrad."),
      flag("maximize", false, kNotBuilt, "Go up instead of down."),
  };
}

std::vector<Key> lamb_keys() {
  return {
      lr_key(1e-3),
      betas_key(0.9, 0.999, "Decay of the first and the second moment."),
      real("eps", 1e-8, kSupported, "Added to the root of the second moment.").at_least(0),
      flag("eps_inside_sqrt", false, kSupported, "Add eps to the second moment instead of its root."),
      weight_decay_key("Weight decay, a part of the direction whose norm is taken."),
      flag("bias_correction", true, kSupported, "Divide the moments by 1 - beta^step."),
      real("max_coeff", 10.0, kSupported, "Largest ratio of a parameter's norm to its direction's.").positive(),
      real("min_coeff", 0.01, kSupported, "Smallest such ratio.").at_least(0),
      flag("amsgrad", false, kNotBuilt, "Keep the maximum of the second moment."),
  };
}

std::vector<Key> sgd_keys() {
  return {
      lr_key(1e-3),
      real("momentum", 0.0, kSupported, "What the momentum keeps at each step; 0: no momentum, and no memory for it.")
          .at_least(0),
      real("dampening", 0.0, kSupported, "The momentum takes 1 - dampening of the gradient.").at_least(0),
      weight_decay_key("L2 added to the gradient."),
      flag("nesterov", false, kSupported, "Nesterov's momentum."),
      flag("maximize", false, kNotBuilt, "Go up instead of down."),
  };
}

std::vector<Key> muon_keys() {
  return {
      real("lr", {}, kSupported, "Learning rate of both halves; absent: 0.02 of Muon's, 3e-4 of AdamW's.").at_least(0),
      real("muon_lr", {}, kSupported, "Learning rate of the parameters that Muon updates, in the place of lr.")
          .at_least(0),
      real("adam_lr", {}, kSupported, "Learning rate of the others, in the place of lr.").at_least(0),
      real("momentum", 0.95, kSupported, "Muon: decay of the momentum.").from_up_to(0, 1),
      weight_decay_key("Decoupled weight decay of both halves."),
      string("ns_method", "gram", kSupported,
             "Newton-Schulz iteration; gram: on the Gram matrix, fewer operations; standard: as torch.optim.Muon.")
          .one_of({{"gram"}, {"standard"}}),
      integer("ns_steps", 5, kSupported, "Newton-Schulz iterations.").between(1, 99),
      string("ns_dtype", {}, kSupported,
             "Type in which they run; absent: bf16 with standard; with gram fp16, on CPUs fp32.")
          .one_of({{"bf16"}, {"fp16"}, {"fp32"}}),
      flag("nesterov", true, kSupported, "Muon: Nesterov's momentum."),
      string("adjust_lr_fn", "original", kSupported,
             "Muon: factor of the rate; original: sqrt(max(1, rows / columns)); match_rms_adamw: 0.2 sqrt(max(rows, "
             "columns)).")
          .one_of({{"original"}, {"match_rms_adamw"}}),
      flag("per_head_muon", false, kSupported,
           "Muon: the rows of each attention head by themselves (docs/optimizers.md)."),
      betas_key(0.9, 0.95, "AdamW: decay of the first and the second moment."),
      real("eps", 1e-10, kSupported, "AdamW: added to the root of the second moment.").at_least(0),
      flag("adam_w_mode", true, kSupported, "AdamW's decoupled decay; false: L2 added to the gradient."),
      flag("torch_adam", false, kAccepted, "There is one implementation here, and it computes what torch's does."),
  };
}

Key maximize_key() { return flag("maximize", false, kSupported, "Go up instead of down."); }
Key eps_key(double eps) { return real("eps", eps, kSupported, "Added to the denominator.").at_least(0); }
Key decoupled_key() {
  return flag("decoupled_weight_decay", false, kSupported, "Decay the parameter, as AdamW, instead of the gradient.");
}

/// Those of torch.optim that Python programs run; names and defaults are torch's.
std::vector<Section> torch_tables() {
  const auto moments = [] { return betas_key(0.9, 0.999, "Decay of the first moment and of the second."); };
  const auto decay = [] { return weight_decay_key("Weight decay."); };
  return {
      params_of({"RMSprop"}, "Parameters of torch.optim.RMSprop.",
                {lr_key(1e-2), real("alpha", 0.99, kSupported, "Decay of the mean square.").between(0, 1),
                 eps_key(1e-8), decay(), real("momentum", 0.0, kSupported, "Momentum.").at_least(0),
                 flag("centered", false, kSupported, "Divide by the standard deviation."), maximize_key()}),
      params_of({"Adamax"}, "Parameters of torch.optim.Adamax.",
                {lr_key(2e-3), moments(), eps_key(1e-8), decay(), maximize_key()}),
      params_of({"Adadelta"}, "Parameters of torch.optim.Adadelta.",
                {lr_key(1.0), real("rho", 0.9, kSupported, "Decay of the mean squares.").between(0, 1), eps_key(1e-6),
                 decay(), maximize_key()}),
      params_of({"NAdam"}, "Parameters of torch.optim.NAdam.",
                {lr_key(2e-3), moments(), eps_key(1e-8), decay(),
                 real("momentum_decay", 4e-3, kSupported, "Decay of the momentum's schedule.").at_least(0),
                 decoupled_key(), maximize_key()}),
      params_of({"RAdam"}, "Parameters of torch.optim.RAdam.",
                {lr_key(1e-3), moments(), eps_key(1e-8), decay(), decoupled_key(), maximize_key()}),
      params_of({"ASGD"}, "Parameters of torch.optim.ASGD.",
                {lr_key(1e-2), real("lambd", 1e-4, kSupported, "Decay term.").at_least(0),
                 real("alpha", 0.75, kSupported, "Power of the rate's decay.").at_least(0),
                 real("t0", 1e6, kSupported, "Step at which averaging starts.").at_least(0), decay(), maximize_key()}),
      params_of(
          {"Rprop"}, "Parameters of torch.optim.Rprop.",
          {lr_key(1e-2),
           floats("etas", {0.5, 1.2}, 2, kSupported, "Factors by which a step shrinks and grows.").at_least(0),
           floats("step_sizes", {1e-6, 50}, 2, kSupported, "Smallest and largest step.").at_least(0), maximize_key()}),
  };
}

}  // namespace

std::vector<Section> optimizer_tables() {
  Section optimizer{"optimizer", "The optimizer, when the program passes none."};
  optimizer.keys = {
      string("type", {}, kSupported, "Name of the optimizer. \"Adam\" means AdamW unless adam_w_mode is false.")
          .one_of(optimizer_types()),
      flag("legacy_fusion", false, kAccepted, "It concerns optimizers that DeepSpeed removed."),
  };
  std::vector<Section> tables = {
      std::move(optimizer),
      params_of({"Adam", "AdamW"}, "Parameters of Adam and AdamW.", adam_keys()),
      params_of({"Lion"}, "Parameters of Lion.",
                {lr_key(1e-4), betas_key(0.9, 0.99, "Weight of the momentum in the direction, and its decay."),
                 weight_decay_key("Decoupled weight decay.")}),
      params_of({"Adagrad"}, "Parameters of Adagrad.", adagrad_keys()),
      params_of({"SGD"}, "Parameters of SGD.", sgd_keys()),
  };
  tables.push_back(params_of({"Lamb"}, "Parameters of Lamb.", lamb_keys()));
  tables.push_back(params_of({"Muon"}, "Parameters of Muon, and of AdamW for what Muon does not update.", muon_keys()));
  tables.back().differs =
      "one formula at every stage, with any accumulation and offload; gradients are clipped before they are "
      "orthogonalized, and \"gram\" runs in fp32 on CPUs";
  for (Section& section : torch_tables()) tables.push_back(std::move(section));
  return tables;
}

}  // namespace zeropage::config
