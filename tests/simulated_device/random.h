/// \file
/// Random numbers: an operator that draws some gets a seed when it is launched, so the numbers do not depend on delays.
#pragma once

#include <ATen/core/Generator.h>

#include <cstdint>
#include <optional>

namespace simulated_device {

const at::Generator& default_generator(int device);
at::Generator new_generator(int device);

/// A CPU generator for one operator, seeded by the next number of `generator` (absent: the default one of `device`).
at::Generator next_cpu_generator(const std::optional<at::Generator>& generator, int device);

}  // namespace simulated_device
