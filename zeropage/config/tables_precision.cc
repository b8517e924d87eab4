/// \file
/// fp16, bf16 and torch_autocast.
#include "zeropage/config/tables.h"

namespace zeropage::config {

using enum Status;

std::vector<Section> precision_tables() {
  Section fp16{"fp16", "Half precision with a loss scale; not together with bf16."};
  fp16.keys = {
      flag("enabled", false, kSupported, "Parameters, activations and gradients in fp16, master weights in fp32.")
          .differing(
              "gradients are divided by the loss scale with which they were computed; DeepSpeed (0.19.8) divides by "
              "the new one in a step that raises it"),
      flag("auto_cast", false, kSupported, "Cast floating-point inputs of the forward to fp16."),
      real("loss_scale", 0.0, kSupported, "A fixed loss scale; 0: dynamic.").at_least(0),
      integer("initial_scale_power", 16, kSupported, "The dynamic scale starts at 2 to this power.").between(0, 126),
      integer("loss_scale_window", 1000, kSupported, "Steps without overflow before the dynamic scale doubles.")
          .at_least(1),
      integer("hysteresis", 2, kSupported, "Overflows before the dynamic scale halves.").between(1, 1e6),
      flag("consecutive_hysteresis", false, kSupported, "A step without overflow resets the hysteresis."),
      real("min_loss_scale", 1.0, kSupported, "Smallest dynamic scale; an overflow at this scale ends the run.")
          .at_least(0),
      flag("fp16_master_weights_and_grads", false, kSupported,
           "No fp32 masters: parameters are rounded stochastically, and gradients are summed in fp16. Not with Lamb or "
           "optimizers that PyTorch runs."),
  };
  fp16.switch_key = "enabled";
  Section bf16{"bf16", "bfloat16 without a loss scale; not together with fp16."};
  bf16.alias = "bfloat16";
  bf16.keys = {
      flag("enabled", false, kSupported, "Parameters, activations and gradients in bf16, master weights in fp32."),
      flag("check_grad_overflow", true, kSupported,
           "Skip a step on all ranks if its gradients are not finite, at any stage.")
          .differing("stage 3 checks, too; DeepSpeed's stage 3 does not read this key"),
      flag("immediate_grad_update", false, kAccepted,
           "Gradients are always added to the sum as soon as the backward computes them."),
      flag("bf16_master_weights_and_grads", false, kSupported,
           "No fp32 masters: parameters are rounded stochastically, and gradients are summed in bf16. Not with Lamb or "
           "optimizers that PyTorch runs."),
      flag(
          "bf16_optimizer_states", false, kSupported,
          "Moments in bf16, rounded stochastically, with or without masters: zeropage.optimizer_state_dtype \"bf16\"."),
  };
  bf16.switch_key = "enabled";
  Section autocast{"torch_autocast", "PyTorch's autocast around the forward (the program may use autocast itself)."};
  autocast.keys = {
      flag("enabled", false, kSupported,
           "Run the forward under autocast (C++: in the scope of engine.autocast()); parameters and gradients stay "
           "fp32. Not with fp16 or bf16."),
      string("dtype", {}, kSupported,
             "Type of autocast; null: bf16. With fp16 losses are scaled, and steps are skipped, according to the keys "
             "of the section "
             "fp16 say.")
          .one_of({{"bf16", kSupported, {"bfloat16", "torch.bfloat16"}},
                   {"fp16", kSupported, {"float16", "half", "torch.float16"}}}),
      strings("lower_precision_safe_modules", {}, kAccepted,
              "Gradients are sent in the type in which autograd computes them, or all in communication_data_type."),
  };
  autocast.switch_key = "enabled";
  return {std::move(fp16), std::move(bf16), std::move(autocast)};
}

}  // namespace zeropage::config
