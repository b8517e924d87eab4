# How C++ programs make torch's process groups (comm/c10d/c10d_job.cc, c10d_hosts.cc). Every torch holds Gloo, and none
# its headers: outlines replace them. NCCL's and CUDA's headers are not torch's either; they are part of a CUDA toolkit,
# and of packages that are installed next to torch.
set(c10d_job zeropage/comm/c10d/c10d_job.cc)
set_property(SOURCE ${c10d_job} zeropage/comm/c10d/c10d_hosts.cc zeropage/reduce/reducer_squares_test.cc
             APPEND PROPERTY INCLUDE_DIRECTORIES ${CMAKE_CURRENT_SOURCE_DIR}/zeropage/comm/c10d/outline)
if(ZEROPAGE_TORCH_HAS_CUDA)
  include(CheckCXXSourceCompiles)
  file(GLOB cuda_includes ${torch_lib}/../../nvidia/*/include /usr/local/cuda/include)
  set(CMAKE_REQUIRED_INCLUDES ${cuda_includes} ${torch_include} ${torch_api_include})
  set(CMAKE_REQUIRED_DEFINITIONS -DUSE_DISTRIBUTED -DUSE_C10D_NCCL)
  set(CMAKE_TRY_COMPILE_TARGET_TYPE STATIC_LIBRARY)  # compiled, not linked
  check_cxx_source_compiles("#include <torch/csrc/distributed/c10d/ProcessGroupNCCL.hpp>\nint main() {}" ZEROPAGE_HAS_NCCL_HEADERS)
  unset(CMAKE_TRY_COMPILE_TARGET_TYPE)
  unset(CMAKE_REQUIRED_INCLUDES)
  unset(CMAKE_REQUIRED_DEFINITIONS)
  if(ZEROPAGE_HAS_NCCL_HEADERS)
    set_property(SOURCE ${c10d_job} APPEND PROPERTY INCLUDE_DIRECTORIES ${cuda_includes})
    set_property(SOURCE ${c10d_job} APPEND PROPERTY COMPILE_DEFINITIONS USE_C10D_NCCL)
    # What torch_cuda needs in turn is found when it is loaded.
    target_link_libraries(zeropage_torch PUBLIC torch_cuda -Wl,--allow-shlib-undefined)
  else()
    message(STATUS "The headers of CUDA and NCCL were not found: C++ programs will not join ranks on GPUs by themselves")
  endif()
endif()
