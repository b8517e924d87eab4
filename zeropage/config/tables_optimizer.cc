/// \file
/// optimizer and optimizer.params.
#include "zeropage/config/tables.h"

namespace zeropage::config {

using enum Status;

namespace {

std::vector<Choice> optimizer_types() {
  std::vector<Choice> types = {{"Adam"}, {"AdamW"}, {"Lion"}, {"Adagrad"}, {"SGD"}};
  for (const char* later : {"Lamb", "OneBitAdam", "ZeroOneAdam", "OneBitLamb", "MuAdam", "MuAdamW", "MuSGD", "Muon",
                            "RMSprop", "Adadelta", "Adamax", "NAdam", "RAdam"}) {
    types.push_back({later, false});
  }
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

Key weight_decay_key(const char* doc) { return real("weight_decay", 0.0, kInForce, doc).at_least(0); }
Key lr_key(double lr) { return real("lr", lr, kInForce, "Learning rate.").at_least(0); }
Key betas_key(double beta1, double beta2, const char* doc) {
  return reals("betas", {beta1, beta2}, 2, kInForce, doc).from_up_to(0, 1);
}

std::vector<Key> adam_keys() {
  return {
      lr_key(1e-3),
      betas_key(0.9, 0.999, "Decay of the first and the second moment."),
      real("eps", 1e-8, kInForce, "Added to the root of the second moment.").at_least(0),
      weight_decay_key("Weight decay."),
      flag("bias_correction", true, kInForce, "Divide the moments by 1 - beta^step."),
      flag("adam_w_mode", true, kInForce, "Adam only: true: decoupled decay (AdamW); false: L2 added to the gradient."),
      flag("torch_adam", false, kAccepted, "There is one implementation here, and it computes what torch's does."),
      flag("amsgrad", false, kNotBuilt, "Keep the maximum of the second moment."),
      flag("fp32_optimizer_states", true, kNotBuilt, "Moments in fp32."),
  };
}

std::vector<Key> adagrad_keys() {
  return {
      lr_key(1e-2),
      real("lr_decay", 0.0, kInForce, "The rate of a step is lr / (1 + steps before * lr_decay).").at_least(0),
      weight_decay_key("L2 added to the gradient."),
      real("initial_accumulator_value", 0.0, kInForce, "What the sum of squares starts with.").at_least(0),
      real("eps", 1e-10, kInForce, "Added to the root of the sum of squares.").at_least(0),
      flag("amsgrad", false, kNotBuilt, "Not a part of Adagrad."),
      flag("maximize", false, kNotBuilt, "Go up instead of down."),
  };
}

std::vector<Key> sgd_keys() {
  return {
      lr_key(1e-3),
      real("momentum", 0.0, kInForce, "What the momentum keeps at each step; 0: no momentum, and no memory for it.")
          .at_least(0),
      real("dampening", 0.0, kInForce, "The momentum takes 1 - dampening of the gradient.").at_least(0),
      weight_decay_key("L2 added to the gradient."),
      flag("nesterov", false, kInForce, "Nesterov's momentum."),
      flag("maximize", false, kNotBuilt, "Go up instead of down."),
  };
}

}  // namespace

std::vector<Section> optimizer_tables() {
  Section optimizer{"optimizer", "The optimizer, when the program passes none."};
  optimizer.keys = {
      text("type", {}, kInForce, "Name of the optimizer. \"Adam\" means AdamW unless adam_w_mode is false.")
          .one_of(optimizer_types()),
      flag("legacy_fusion", false, kNotBuilt, "Fusion of gradients in the 1-bit optimizers."),
  };
  return {
      std::move(optimizer),
      params_of({"Adam", "AdamW"}, "Parameters of Adam and AdamW.", adam_keys()),
      params_of({"Lion"}, "Parameters of Lion.",
                {lr_key(1e-4), betas_key(0.9, 0.99, "Weight of the momentum in the direction, and its decay."),
                 weight_decay_key("Decoupled weight decay.")}),
      params_of({"Adagrad"}, "Parameters of Adagrad.", adagrad_keys()),
      params_of({"SGD"}, "Parameters of SGD.", sgd_keys()),
  };
}

}  // namespace zeropage::config
