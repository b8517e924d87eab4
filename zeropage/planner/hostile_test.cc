#include "zeropage/base/mutations.h"
#include "zeropage/planner/fuzz_targets.h"

namespace zeropage::planner {
namespace {

// Catches a model file that ends `zeropage plan`, or whose sizes it believes although they do not fit together.
TEST(Hostile, MutatedSafetensorsAreAcceptedOrRefused) { drive_with_mutations("safetensors", accepts_safetensors); }

}  // namespace
}  // namespace zeropage::planner
