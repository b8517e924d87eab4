#include "zeropage/planner/fuzz_targets.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  zeropage::planner::accepts_safetensors({reinterpret_cast<const char*>(data), size});
  return 0;
}
