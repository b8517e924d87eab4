# libzeropage_mpi.so: the communicator over MPI for C++ programs. zeropage::zeropage loads it when ranks need it;
# programs that start MPI themselves link zeropage::mpi. What it needs of zeropage it takes from libzeropage.so.
add_library(zeropage_mpi_library SHARED zeropage/comm/mpi/mpi_library.cc)
add_library(zeropage::mpi ALIAS zeropage_mpi_library)
set_target_properties(zeropage_mpi_library PROPERTIES OUTPUT_NAME zeropage_mpi INSTALL_RPATH "\$ORIGIN")
target_include_directories(zeropage_mpi_library PUBLIC ${PROJECT_SOURCE_DIR})
target_link_options(zeropage_mpi_library PRIVATE -Wl,--no-undefined)
target_link_libraries(zeropage_mpi_library PRIVATE
  -Wl,--whole-archive $<TARGET_FILE:zeropage_mpi> -Wl,--no-whole-archive $<TARGET_FILE:zeropage_cpp> MPI::MPI_C Threads::Threads)
add_dependencies(zeropage_mpi_library zeropage_mpi zeropage_cpp)
