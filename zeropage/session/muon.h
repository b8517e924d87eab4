/// \file
/// The update of a parameter by Muon, for Python's zeropage.muon and for C++ programs. For a matrix p with the mean
/// gradient g, after clipping:
///
///     m = momentum * m + (1 - momentum) * g
///     u = (1 - momentum) * g + momentum * m           without nesterov: u = m
///     p = p * (1 - lr * weight_decay) - lr * adjust(rows, columns) * orthogonal(u)
///
/// `orthogonal`: newton_schulz.h. Convolution kernels are matrices of (out, rest); parameters of three dimensions are
/// stacked matrices. With method "standard" in bf16 the bits are those of torch.optim.Muon.
///
/// The parameters that are no matrices are updated by AdamW, with the bits of torch.optim.AdamW.
#pragma once

#include "zeropage/memory/torch_config.h"

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace zeropage::session {

/// Hyperparameters of a parameter that Muon updates.
struct MuonOptions {
  double lr = 0.02;
  double momentum = 0.95;
  double weight_decay = 0.0;
  bool nesterov = true;
  std::string ns_method = "gram";         ///< or "standard"
  std::int64_t ns_steps = 5;              ///< iterations
  std::string ns_dtype;                   ///< "bf16", "fp16", "fp32"; empty: see newton_schulz.h
  std::string adjust_lr_fn = "original";  ///< or "match_rms_adamw"
  std::int64_t matrices = 0;              ///< number of matrices that are stacked in the parameter; 0: by its shape
};

/// The matrices of a parameter: its rows in `count` equal parts. With 0 a parameter of three dimensions is a stack of
/// matrices, and any other is one matrix (out, rest). Views where possible.
std::vector<at::Tensor> as_matrices(const at::Tensor& update, std::int64_t count);

/// Hyperparameters of a parameter that AdamW updates.
struct MuonAdamOptions {
  double lr = 3e-4;
  double beta1 = 0.9;
  double beta2 = 0.95;
  double eps = 1e-10;
  double weight_decay = 0.0;
  bool adam_w_mode = true;  ///< false: the decay is added to the gradient
};

/// Changes `parameter`, `exp_avg` and `exp_avg_sq`, of one shape and in fp32. `step`: 1 for the first update.
void adam_step(at::Tensor parameter, at::Tensor gradient, at::Tensor exp_avg, at::Tensor exp_avg_sq, double step,
               const MuonAdamOptions& options);

/// Changes `parameter` and `momentum`, of one shape and in fp32. Cost: that of `orthogonal` for each matrix.
void muon_step(at::Tensor parameter, const at::Tensor& gradient, at::Tensor momentum, const MuonOptions& options);

}  // namespace zeropage::session
