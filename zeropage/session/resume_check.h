/// \file
/// Compares what a program has with what a checkpoint has, apart from the engine's own state: buffers, the optimizer's
/// name, and the number of its parameter groups.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

namespace zeropage::session {

using BufferShapes = std::map<std::string, std::vector<std::int64_t>>;  // by the buffer's name

/// One side of the comparison: the program, or the checkpoint.
struct ResumeFacts {
  BufferShapes buffers{};
  std::optional<std::string> optimizer{};  ///< "adamw"; absent: none, or a checkpoint that does not say it
  std::size_t groups = 0;                  ///< parameter groups
};

/// What a load reads.
struct ResumeScope {
  bool strict = true;                ///< every buffer of one side must be on the other
  bool with_optimizer = true;        ///< otherwise optimizer and groups are not compared
  std::set<std::string> excluded{};  ///< buffers that the checkpoint left out on purpose
};

/// One sentence for each difference that prevents the load; empty: none.
std::vector<std::string> differences(const ResumeFacts& program, const ResumeFacts& stored, const ResumeScope& scope);

}  // namespace zeropage::session
