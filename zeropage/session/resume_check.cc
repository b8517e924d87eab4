#include "zeropage/session/resume_check.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

namespace zeropage::session {
namespace {

void compare_buffers(const BufferShapes& program, const BufferShapes& stored, const ResumeScope& scope,
                     std::vector<std::string>& found) {
  for (const auto& [name, shape] : program) {
    const auto other = stored.find(name);
    if (other == stored.end()) {
      if (scope.strict && !scope.excluded.contains(name)) {
        found.push_back(fmt::format("buffer '{}' is in the model, not in the checkpoint", name));
      }
    } else if (other->second != shape) {
      found.push_back(fmt::format("buffer '{}' is [{}] in the model, [{}] in the checkpoint", name,
                                  fmt::join(shape, ", "), fmt::join(other->second, ", ")));
    }
  }
  for (const auto& [name, shape] : stored) {
    if (scope.strict && !program.contains(name)) {
      found.push_back(fmt::format("buffer '{}' is in the checkpoint, not in the model", name));
    }
  }
}

}  // namespace

std::vector<std::string> differences(const ResumeFacts& program, const ResumeFacts& stored, const ResumeScope& scope) {
  std::vector<std::string> found;
  compare_buffers(program.buffers, stored.buffers, scope, found);
  if (!scope.with_optimizer) return found;
  if (stored.groups != program.groups) {
    found.push_back(fmt::format(
        "the optimizer has {} parameter groups, the checkpoint {}; pass load_optimizer_states=False to keep yours",
        program.groups, stored.groups));
  }
  if (stored.optimizer && stored.optimizer != program.optimizer) {
    found.push_back(
        fmt::format("the optimizer is {}, but the checkpoint's optimizer is {}; pass load_optimizer_states=False to "
                    "start without its state",
                    program.optimizer.value_or("absent"), *stored.optimizer));
  }
  return found;
}

}  // namespace zeropage::session
