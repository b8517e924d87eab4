# What keeps a build short. Most of the time goes into headers that nearly every file includes: they are compiled once
# for a target and those that share its headers. A file still includes what it needs: builds with sanitizers have no
# precompiled headers, nor has make check-torch. Only headers that are cheap to load: with CLI11 or ATen's operators
# among them each file takes longer, not shorter.
if(ZEROPAGE_SANITIZE)
  set(CMAKE_DISABLE_PRECOMPILE_HEADERS ON)
endif()
set(common_headers <fmt/format.h> <algorithm> <chrono> <cstdint> <cstring> <filesystem> <functional> <map> <memory> <optional> <string>
  <string_view> <utility> <vector>)

function(precompile target reused_from)
  target_compile_options(${target} PRIVATE $<$<COMPILE_LANG_AND_ID:CXX,GNU>:-fpch-preprocess> $<$<COMPILE_LANGUAGE:CXX>:-Winvalid-pch>)
  if(reused_from)
    target_precompile_headers(${target} REUSE_FROM ${reused_from})
    # The compiler refuses them where a macro is not defined as it was, or code is made for a program (-fPIE) instead of
    # any place.
    target_compile_options(${target} PRIVATE -fPIC)
    target_compile_definitions(${target} PRIVATE $<TARGET_PROPERTY:${reused_from},COMPILE_DEFINITIONS>)
  else()
    target_precompile_headers(${target} PRIVATE ${ARGN})
  endif()
endfunction()

# compile_quickly(TARGET [OTHER]): for what waits for files and people. OTHER: a target whose precompiled headers it
# shares.
function(compile_quickly target)
  target_compile_options(${target} PRIVATE $<$<CONFIG:Release>:-O1>)
  precompile(${target} "${ARGN}" ${common_headers})
endfunction()

# compile_with_torch(TARGET [OTHER]): for files that include torch.
function(compile_with_torch target)
  target_compile_options(${target} PRIVATE $<$<CONFIG:Release>:-O2>)
  precompile(${target} "${ARGN}" ${common_headers} <ATen/core/Tensor.h> <c10/core/GradMode.h>)
endfunction()
