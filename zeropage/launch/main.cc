/// \file
/// The command `zeropage`.
#include <cstdio>

int main() {
  std::puts("zeropage " ZEROPAGE_VERSION);
  return 0;
}
