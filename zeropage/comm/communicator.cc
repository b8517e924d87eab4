#include "zeropage/comm/communicator.h"

namespace zeropage::comm {

std::string all_gather_small(Communicator& communicator, std::string_view mine, Tag tag) {
  std::string all(mine.size() * static_cast<std::size_t>(communicator.size()), '\0');
  communicator.all_gather(mine.data(), all.data(), static_cast<std::int64_t>(mine.size()), tag)->wait();
  return all;
}

}  // namespace zeropage::comm
