#include "zeropage/base/mutations.h"
#include "zeropage/planner/fuzz_targets.h"

namespace zeropage::planner {
namespace {

// Catches a model file that crashes `zeropage plan`, or whose sizes are accepted although they contradict each other.
TEST(Hostile, MutatedSafetensorsAreAcceptedOrRefused) { drive_with_mutations("safetensors", accepts_safetensors); }

}  // namespace
}  // namespace zeropage::planner
