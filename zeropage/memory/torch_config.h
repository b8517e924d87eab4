/// \file
/// Every torch-facing header includes this first. torch's wheel is built with NDEBUG, and `at::RecordFunction` and
/// others have a different layout without it. A translation unit without NDEBUG would silently corrupt torch's
/// callbacks.
#pragma once

#ifndef NDEBUG
#error "zeropage's torch-facing code must be compiled with -DNDEBUG, as the torch wheel is"
#endif

#include <ATen/core/Tensor.h>

#include "zeropage/comm/c10d/c10d_dtype.h"
