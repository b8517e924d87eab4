/// \file
/// optimizer and optimizer.params.
#include "zeropage/config/optimizers.h"
#include "zeropage/config/tables.h"

namespace zeropage::config {

using enum Status;

namespace {

std::vector<Choice> types_by_name() {
  std::vector<Choice> types;
  for (const auto& entry : optimizer_entries()) types.push_back({entry.type});
  for (const char* torch : {"RMSprop", "Adamax", "Adadelta", "NAdam", "RAdam", "ASGD", "Rprop", "Muon"}) {
    types.push_back({torch});
  }
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

/// The sections of the engine's own optimizers.
std::vector<Section> engine_tables() {
  std::vector<Section> tables;
  for (const auto& entry : optimizer_entries()) {
    if (!tables.empty() && tables.back().doc == entry.doc) {
      tables.back().variants.push_back(entry.type);
      continue;
    }
    std::vector<Key> keys;
    for (const auto& hyperparameter : entry.hyperparameters) keys.push_back(hyperparameter.key);
    keys.insert(keys.end(), entry.other_keys.begin(), entry.other_keys.end());
    tables.push_back(params_of({entry.type}, entry.doc, std::move(keys)));
  }
  return tables;
}

std::vector<Key> muon_keys() {
  return {
      real("lr", {}, kSupported, "Learning rate of both halves; absent: 0.02 for Muon's half, 3e-4 for AdamW's.")
          .at_least(0),
      real("muon_lr", {}, kSupported, "Learning rate of the parameters that Muon updates, instead of lr.").at_least(0),
      real("adam_lr", {}, kSupported, "Learning rate of the other parameters, instead of lr.").at_least(0),
      real("momentum", 0.95, kSupported, "Muon: decay of the momentum.").from_up_to(0, 1),
      weight_decay_key("Decoupled weight decay of both halves."),
      string("ns_method", "gram", kSupported,
             "Newton-Schulz iteration; gram: on the Gram matrix, fewer operations; standard: as torch.optim.Muon.")
          .one_of({{"gram"}, {"standard"}}),
      integer("ns_steps", 5, kSupported, "Newton-Schulz iterations.").between(1, 99),
      string("ns_dtype", {}, kSupported,
             "Type of the iterations; absent: bf16 with standard; with gram fp16, on CPUs fp32.")
          .one_of({{"bf16"}, {"fp16"}, {"fp32"}}),
      flag("nesterov", true, kSupported, "Muon: Nesterov's momentum."),
      string("adjust_lr_fn", "original", kSupported,
             "Muon: factor of the rate; original: sqrt(max(1, rows / columns)); match_rms_adamw: 0.2 sqrt(max(rows, "
             "columns)).")
          .one_of({{"original"}, {"match_rms_adamw"}}),
      flag("per_head_muon", false, kSupported,
           "Muon: orthogonalize the rows of each attention head separately (docs/optimizers.md)."),
      betas_key(0.9, 0.95, "AdamW: decay of the first and the second moment."),
      real("eps", 1e-10, kSupported, "AdamW: added to the root of the second moment.").at_least(0),
      flag("adam_w_mode", true, kSupported, "AdamW's decoupled decay; false: L2 added to the gradient."),
      flag("torch_adam", false, kAccepted, "There is only one implementation, with the same results as torch's."),
  };
}

Key maximize_key() { return flag("maximize", false, kSupported, "Maximize the loss instead of minimizing it."); }
Key eps_key(double eps) { return real("eps", eps, kSupported, "Added to the denominator.").at_least(0); }
Key decoupled_key() {
  return flag("decoupled_weight_decay", false, kSupported,
              "Decay the parameter, as AdamW does, instead of adding L2 to the gradient.");
}

/// The sections of optimizers of torch.optim that Python programs run. Names and defaults are torch's.
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
          .one_of(types_by_name()),
      flag("legacy_fusion", false, kAccepted, "Only for optimizers that DeepSpeed has removed."),
  };
  std::vector<Section> tables = {std::move(optimizer)};
  for (Section& section : engine_tables()) tables.push_back(std::move(section));
  tables.push_back(params_of({"Muon"}, "Parameters of Muon, and of AdamW for the parameters that Muon does not update.",
                             muon_keys()));
  tables.back().differs =
      "one formula at every stage, with any accumulation and offload; gradients are clipped before they are "
      "orthogonalized, and \"gram\" runs in fp32 on CPUs";
  for (Section& section : torch_tables()) tables.push_back(std::move(section));
  return tables;
}

}  // namespace zeropage::config
