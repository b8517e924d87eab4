# Counters for the lines that run (ZEROPAGE_COVERAGE=ON, tools/line_coverage.py; g++ and GNU ld). Every process of a
# build adds to the same counters: they are a file in build/.../counters for each program and library, which
# line_counters.cc maps into memory when the process starts. So nothing is written when a process ends, a killed rank is
# counted, too, and a process that may not open the file counts for itself alone.
set(count_in_loops)  # for the COMPILE_OPTIONS of kernels
if(NOT ZEROPAGE_COVERAGE)
  return()
endif()
set(counters ${CMAKE_BINARY_DIR}/counters)
file(MAKE_DIRECTORY ${counters})
# Linked into each program and library, and into no archive, where it would be found more than once.
execute_process(
  COMMAND ${CMAKE_CXX_COMPILER} -std=c++20 -O1 -fPIC -Wall -Wextra -DFOLDER=\"${counters}\" -c ${CMAKE_CURRENT_LIST_DIR}/line_counters.cc
    -o ${CMAKE_BINARY_DIR}/line_counters.o
  COMMAND_ERROR_IS_FATAL ANY)
set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${CMAKE_CURRENT_LIST_DIR}/line_counters.cc)
# Sections: one for each function's counters, which line_counters.ld puts together, and one that lists what they count.
add_compile_options(--coverage -fprofile-update=atomic -fprofile-info-section=zeropage_line_counters -fdata-sections)
# Counters hide from g++ that a std::optional has a value, so it warns where nothing is wrong.
add_compile_options(-Wno-maybe-uninitialized)
# Atomic additions would take most of the time of inner loops. Without them two processes that count at once may lose a
# count.
set(count_in_loops -fprofile-update=single)
add_link_options(--coverage ${CMAKE_BINARY_DIR}/line_counters.o -Wl,-T,${CMAKE_CURRENT_LIST_DIR}/line_counters.ld)
