#include "zeropage/cpp/version.h"

namespace zeropage {

const char* version() { return ZEROPAGE_VERSION; }

}  // namespace zeropage
