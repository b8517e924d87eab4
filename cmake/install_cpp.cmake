# Installs what a C++ program needs: the library, the public headers and the CMake package. A wheel holds the same
# folders within the Python package (`python -m zeropage --cmake-dir`).
include(CMakePackageConfigHelpers)
set(root "")
if(SKBUILD)
  set(root zeropage/)
  set_target_properties(zeropage_cpp PROPERTIES INSTALL_RPATH "\$ORIGIN/../../torch/lib")
else()
  set_target_properties(zeropage_cpp PROPERTIES INSTALL_RPATH ${torch_lib})
  install(TARGETS zeropage_cli RUNTIME DESTINATION bin)
endif()
install(TARGETS zeropage_cpp LIBRARY DESTINATION ${root}lib)
set(mpi_headers)
if(TARGET zeropage_mpi_library)
  install(TARGETS zeropage_mpi_library LIBRARY DESTINATION ${root}lib)
  set(mpi_headers comm/mpi/mpi_communicator.h comm/mpi/mpi_runtime.h)
endif()

foreach(header zeropage.h base/dtype.h base/error.h base/exit_code.h comm/c10d/c10d_communicator.h comm/c10d/c10d_job.h comm/communicator.h comm/hosts/host_grid.h
        comm/shm/shared_memory_communicator.h comm/thread_communicator.h comm/world.h cpp/autocast.h cpp/checkpoint.h cpp/config.h cpp/engine.h cpp/gathered.h
        cpp/init.h cpp/monitor.h cpp/options.h cpp/plan.h cpp/report.h cpp/version.h planner/plan_options.h ${mpi_headers})
  get_filename_component(folder zeropage/${header} DIRECTORY)
  install(FILES zeropage/${header} DESTINATION ${root}include/${folder})
endforeach()

# Headers that moved in version 0.2: their old names include the new ones, with a message, for one version.
foreach(moved c10d/c10d_communicator c10d/c10d_job shm/shared_memory_communicator mpi/mpi_communicator mpi/mpi_runtime)
  get_filename_component(name ${moved} NAME)
  set(forward ${CMAKE_CURRENT_BINARY_DIR}/moved/zeropage/comm/${name}.h)
  file(WRITE ${forward} "#pragma once\n#pragma message(\"zeropage/comm/${name}.h is now zeropage/comm/${moved}.h\")\n#include \"zeropage/comm/${moved}.h\"\n")
  install(FILES ${forward} DESTINATION ${root}include/zeropage/comm)
endforeach()

set(package ${root}share/cmake/zeropage)
configure_file(cmake/zeropage-config.cmake.in ${CMAKE_CURRENT_BINARY_DIR}/zeropage-config.cmake @ONLY)
write_basic_package_version_file(${CMAKE_CURRENT_BINARY_DIR}/zeropage-config-version.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/zeropage-config.cmake ${CMAKE_CURRENT_BINARY_DIR}/zeropage-config-version.cmake
  cmake/torch.cmake cmake/torch_info.py DESTINATION ${package})
