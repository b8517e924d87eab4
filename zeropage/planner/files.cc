#include "zeropage/planner/files.h"

#include "zeropage/base/read_file.h"

namespace zeropage::planner {
namespace {

constexpr const char* kModelFile = "the model's file";
constexpr const char* kAdvice = "check the path of the model";

}  // namespace

std::string read_start(const std::filesystem::path& path, std::uintmax_t bytes) {
  return zeropage::read_start(path.string(), kModelFile, kAdvice, bytes);
}

std::string read_file(const std::filesystem::path& path, std::uintmax_t max_bytes) {
  return zeropage::read_file(path.string(), kModelFile, kAdvice, max_bytes);
}

}  // namespace zeropage::planner
