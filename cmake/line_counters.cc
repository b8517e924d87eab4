// Part of each program and library of a build with ZEROPAGE_COVERAGE (coverage.cmake). Before anything else runs, the
// pages of its counters become a shared mapping of a file, so that all processes count together.
//
// With ZEROPAGE_WRITE_COUNTERS in the environment the file is instead added to gcc's own files (.gcda) and removed, and
// a program ends. tools/line_coverage.py does that once, after the tests.
#include <dlfcn.h>
#include <fcntl.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdlib>
#include <string>

struct gcov_info;

extern "C" {
#define HIDDEN __attribute__((visibility("hidden")))
extern char zeropage_counters_begin[] HIDDEN;
extern char zeropage_counters_end[] HIDDEN;
// The linker's names for the ends of a section: a pointer for each object file.
extern gcov_info* __start_zeropage_line_counters[] HIDDEN;
extern gcov_info* __stop_zeropage_line_counters[] HIDDEN;
// Of libgcov.
void __gcov_init(gcov_info*);
void __gcov_dump();
}

namespace {

/// The file becomes the memory of the counters. Returns whether it could. A file of another size is that of another
/// version of this program: it is removed, and stays what it is for the processes of that version.
bool map_counters(const std::string& path, int flags) {
  const auto size = zeropage_counters_end - zeropage_counters_begin;
  int file = ::open(path.c_str(), O_RDWR | O_CLOEXEC | flags, 0666);
  struct stat found = {};
  if (file >= 0 && ::fstat(file, &found) == 0 && found.st_size != 0 && found.st_size != size) {
    ::close(file);
    ::unlink(path.c_str());
    file = ::open(path.c_str(), O_RDWR | O_CLOEXEC | flags, 0666);
  }
  if (file < 0) return false;
  const bool good =
      ::ftruncate(file, size) == 0 && ::mmap(zeropage_counters_begin, static_cast<std::size_t>(size),
                                             PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, file, 0) != MAP_FAILED;
  ::close(file);
  return good;
}

__attribute__((constructor(101))) void share_counters() {
  Dl_info image = {};
  if (::dladdr(zeropage_counters_begin, &image) == 0) return;
  const std::string name = image.dli_fname;
  const std::string path = FOLDER "/" + name.substr(name.rfind('/') + 1);
  if (std::getenv("ZEROPAGE_WRITE_COUNTERS") == nullptr) {
    map_counters(path, O_CREAT);
    return;
  }
  if (map_counters(path, 0)) {
    for (gcov_info** info = __start_zeropage_line_counters; info != __stop_zeropage_line_counters; ++info)
      __gcov_init(*info);
    __gcov_dump();
    ::unlink(path.c_str());
  }
  // The program headers are at the start of the program, and not of a library.
  const auto headers = ::getauxval(AT_PHDR) - reinterpret_cast<unsigned long>(image.dli_fbase);
  if (headers < 4096) ::_exit(0);
}

}  // namespace
