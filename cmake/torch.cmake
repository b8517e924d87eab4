# Finds the installed torch by asking the Python that will import it, so that any wheel (CPU or CUDA, 2.11 and newer)
# works without its own CMake package, which would demand a CUDA toolkit for CUDA builds.
# Defines the target zeropage_libtorch (headers, libraries, ABI). Also part of the installed CMake package, which sets
# zeropage_in_package: then it is not an error that there is no torch, but zeropage_torch_problem says so.
set(zeropage_torch_problem "")
if(zeropage_in_package)
  find_package(Python 3.11 QUIET COMPONENTS Interpreter)
else()
  find_package(Python 3.11 REQUIRED COMPONENTS Interpreter)
endif()
# pip hides the environment's packages from a build by PYTHONPATH and other variables: -E ignores them and finds the
# torch that the package will be used with.
foreach(flags "" -E)
  execute_process(
    COMMAND ${Python_EXECUTABLE} ${flags} ${CMAKE_CURRENT_LIST_DIR}/torch_info.py
    OUTPUT_VARIABLE torch_info OUTPUT_STRIP_TRAILING_WHITESPACE RESULT_VARIABLE torch_rc ERROR_VARIABLE torch_err)
  if(torch_rc EQUAL 0)
    break()
  endif()
endforeach()
if(NOT torch_rc EQUAL 0 AND zeropage_in_package)
  set(zeropage_torch_problem "zeropage found no libtorch: call find_package(Torch) before, or name a Python that has torch by "
    "-DPython_EXECUTABLE=... (tried: '${Python_EXECUTABLE}')")
  return()
elseif(NOT torch_rc EQUAL 0)
  message(FATAL_ERROR "zeropage needs torch 2.11 or newer in ${Python_EXECUTABLE}: ${torch_err}\n"
    "Install torch there first; then, if your installer builds in an environment of its own, say: "
    "pip install --no-build-isolation .")
endif()
list(GET torch_info 0 ZEROPAGE_TORCH_VERSION)
list(GET torch_info 1 torch_include)
list(GET torch_info 2 torch_api_include)
list(GET torch_info 3 torch_lib)
list(GET torch_info 4 torch_abi)
list(GET torch_info 5 ZEROPAGE_TORCH_HAS_CUDA)
if(NOT zeropage_FIND_QUIETLY)
  message(STATUS "torch ${ZEROPAGE_TORCH_VERSION} (${torch_lib}), CUDA: ${ZEROPAGE_TORCH_HAS_CUDA}")
endif()

add_library(zeropage_libtorch INTERFACE)
target_include_directories(zeropage_libtorch SYSTEM INTERFACE ${torch_include} ${torch_api_include})
# The wheel is built with NDEBUG and some of its classes change size without it (at::RecordFunction).
target_compile_definitions(zeropage_libtorch INTERFACE NDEBUG _GLIBCXX_USE_CXX11_ABI=${torch_abi} USE_DISTRIBUTED USE_C10D_GLOO)
target_compile_options(zeropage_libtorch INTERFACE -Wno-deprecated-declarations)
target_link_directories(zeropage_libtorch INTERFACE ${torch_lib})
target_link_libraries(zeropage_libtorch INTERFACE torch_cpu c10)
# at::parallel_for is a template and runs on one thread in code that is compiled without OpenMP. The runtime must be
# torch's own, which wheels contain: with a second one each would have threads of its own.
target_compile_options(zeropage_libtorch INTERFACE -fopenmp)
file(GLOB torch_gomp ${torch_lib}/libgomp*.so* ${torch_lib}/../../torch.libs/libgomp*.so*)
if(torch_gomp)
  list(GET torch_gomp 0 torch_gomp)
  target_link_libraries(zeropage_libtorch INTERFACE ${torch_gomp})
else()
  target_link_options(zeropage_libtorch INTERFACE -fopenmp)
endif()
if(NOT SKBUILD)  # a wheel finds torch in the folder next to its own, see INSTALL_RPATH
  target_link_options(zeropage_libtorch INTERFACE -Wl,-rpath,${torch_lib})
endif()
