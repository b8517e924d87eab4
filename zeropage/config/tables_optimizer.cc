/// \file
/// optimizer and optimizer.params.
#include "zeropage/config/tables.h"

namespace zeropage::config {

using enum Status;

namespace {

std::vector<Choice> optimizer_types() {
  std::vector<Choice> types = {{"Adam"}, {"AdamW"}};
  for (const char* later : {"Adagrad", "Lamb", "Lion", "OneBitAdam", "ZeroOneAdam", "OneBitLamb", "MuAdam", "MuAdamW",
                            "MuSGD", "Muon", "SGD", "RMSprop", "Adadelta", "Adamax", "NAdam", "RAdam"}) {
    types.push_back({later, false});
  }
  return types;
}

}  // namespace

std::vector<Section> optimizer_tables() {
  Section optimizer{"optimizer", "The optimizer, when the program passes none."};
  optimizer.keys = {
      text("type", {}, kInForce, "Name of the optimizer. \"Adam\" means AdamW unless adam_w_mode is false.")
          .one_of(optimizer_types()),
      flag("legacy_fusion", false, kNotBuilt, "Fusion of gradients in the 1-bit optimizers."),
  };
  Section adam{"optimizer.params", "Parameters of Adam and AdamW."};
  adam.variant_of = "optimizer.type";
  adam.variants = {"Adam", "AdamW"};
  adam.keys = {
      real("lr", 1e-3, kInForce, "Learning rate.").at_least(0),
      reals("betas", {0.9, 0.999}, 2, kInForce, "Decay of the first and the second moment.").from_up_to(0, 1),
      real("eps", 1e-8, kInForce, "Added to the root of the second moment.").at_least(0),
      real("weight_decay", 0.0, kInForce, "Weight decay.").at_least(0),
      flag("bias_correction", true, kInForce, "Divide the moments by 1 - beta^step."),
      flag("adam_w_mode", true, kInForce, "Adam only: true: decoupled decay (AdamW); false: L2 added to the gradient."),
      flag("torch_adam", false, kAccepted, "There is one implementation here, and it computes what torch's does."),
      flag("amsgrad", false, kNotBuilt, "Keep the maximum of the second moment."),
      flag("fp32_optimizer_states", true, kNotBuilt, "Moments in fp32."),
      real("max_grad_norm", {}, kNotBuilt,
           "Not a parameter of the optimizer: write gradient_clipping at the top level."),
  };
  return {std::move(optimizer), std::move(adam)};
}

}  // namespace zeropage::config
