# The communicator over MPI. It is in a library of its own (mpi_library.cmake): only jobs that talk through MPI need one
# to run.
set(ZEROPAGE_WITH_MPI AUTO CACHE STRING "Build the communicator over MPI: AUTO (when an MPI is found), ON or OFF")
if(ZEROPAGE_WITH_MPI STREQUAL "AUTO")
  if(NOT SKBUILD AND NOT ZEROPAGE_SANITIZE)  # sanitizers complain about the insides of MPI
    enable_language(C)
    find_package(MPI QUIET COMPONENTS C)
  endif()
elseif(ZEROPAGE_WITH_MPI)
  enable_language(C)
  find_package(MPI REQUIRED COMPONENTS C)
endif()
if(MPI_C_FOUND)
  message(STATUS "MPI ${MPI_C_VERSION}: ${MPI_C_LIBRARIES}")
  add_library(zeropage_mpi STATIC ${mpi_in_comm})
  target_compile_options(zeropage_mpi PRIVATE -O3)
  target_compile_definitions(zeropage_mpi PUBLIC OMPI_SKIP_MPICXX MPICH_SKIP_MPICXX)  # the C interface alone
  target_link_libraries(zeropage_mpi PUBLIC zeropage_core MPI::MPI_C)
endif()
