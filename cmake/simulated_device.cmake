# The simulated accelerator of the tests (tests/simulated_device): a Python extension in the folder of its package
# there. Never installed.
file(GLOB simulated_sources CONFIGURE_DEPENDS tests/simulated_device/*.cc)
add_library(simulated_device MODULE ${simulated_sources} ${fmt_library})
set_target_properties(simulated_device PROPERTIES
  OUTPUT_NAME _device PREFIX "" SUFFIX ".so" CXX_VISIBILITY_PRESET hidden JOB_POOL_COMPILE torch
  LIBRARY_OUTPUT_DIRECTORY ${CMAKE_CURRENT_SOURCE_DIR}/tests/simulated_device)
# The kernels give the same bits as on the host: no fused multiply-add.
set_source_files_properties(tests/simulated_device/kernels.cc PROPERTIES SKIP_PRECOMPILE_HEADERS ON COMPILE_OPTIONS "-O3;-ffp-contract=off")
target_compile_definitions(simulated_device PRIVATE TORCH_EXTENSION_NAME=_device)
target_link_libraries(simulated_device PRIVATE zeropage_core zeropage_libtorch torch_python torch Python::Module)
compile_with_torch(simulated_device zeropage_torch)
