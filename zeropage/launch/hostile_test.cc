// Tests of untrusted input: hostfiles, and messages of an agent.
#include "zeropage/base/mutations.h"
#include "zeropage/launch/fuzz_targets.h"

namespace zeropage::launch {
namespace {

// Catches input that crashes the launcher, is read out of bounds, or gives a host name that a shell or ssh interprets
// differently.
TEST(Hostile, MutatedHostfilesAreAcceptedOrRefused) { drive_with_mutations("hosts", accepts_hosts); }
TEST(Hostile, MutatedMessagesAreAcceptedOrRefused) { drive_with_mutations("message", accepts_message); }

}  // namespace
}  // namespace zeropage::launch
