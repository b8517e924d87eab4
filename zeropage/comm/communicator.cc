#include "zeropage/comm/communicator.h"

namespace zeropage::comm {

std::string Communicator::gather_host_bytes(std::string_view mine, Tag tag) {
  std::string all(mine.size() * static_cast<std::size_t>(size()), '\0');
  all_gather(mine.data(), all.data(), static_cast<std::int64_t>(mine.size()), tag)->wait();
  return all;
}

std::string all_gather_small(Communicator& communicator, std::string_view mine, Tag tag) {
  return communicator.gather_host_bytes(mine, tag);
}

}  // namespace zeropage::comm
