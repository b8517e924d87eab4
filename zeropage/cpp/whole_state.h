/// \file
/// State that an optimizer keeps of a parameter that it gets whole, in a checkpoint, in the form of Python's
/// shard_state.py: "torch_value/NAME" is JSON in the form of stored_values.h, and "torch_part.0/NAME", ... are the
/// tensors in it.
#pragma once

#include "zeropage/memory/torch_config.h"

#include <ATen/core/Tensor.h>

#include <string>

#include "zeropage/checkpoint/load.h"
#include "zeropage/cpp/archive_items.h"
#include "zeropage/cpp/stored_values.h"

namespace zeropage::cpp {

/// `items`: tensors, integers, floats and bools by name. Returns tensors by their names in a checkpoint. Errors:
/// CheckpointError for other values.
Tensors encode_whole_state(const ArchiveItems& items, const std::string& parameter);

/// Reads such state, also if Python has saved it. Errors: CheckpointError, also for lists and other values that an
/// archive cannot contain; IoError.
ArchiveItems decode_whole_state(checkpoint::Checkpoint& step, const std::string& parameter);

}  // namespace zeropage::cpp
