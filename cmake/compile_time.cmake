# What keeps a build short. Headers that nearly every file includes take most of the time: they are compiled once
# for a target and those that share its headers. A file still includes what it needs: make check-torch has no
# precompiled headers, and builds with sanitizers have them only for files that need torch. Only headers that are cheap
# to load: with CLI11 or ATen's operators among them each file takes longer, not shorter.
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
  unite(${target})
endfunction()

# compile_with_torch(TARGET [OTHER]): for files that include torch.
function(compile_with_torch target)
  set_target_properties(${target} PROPERTIES DISABLE_PRECOMPILE_HEADERS OFF)
  target_compile_options(${target} PRIVATE $<$<CONFIG:Release>:-O2>)
  precompile(${target} "${ARGN}" ${common_headers} <ATen/core/Tensor.h> <c10/core/GradMode.h>)
  unite(${target})
endfunction()

# unite(TARGET): the compiler takes several files of a folder at once, so that it reads the headers they share once.
# That halves the time of a first build and of one after a change of a header; a change of one file costs more, because
# its neighbours are compiled with it: -DZEROPAGE_UNITY=OFF is for long work on a few files. Names in anonymous
# namespaces are unique in a folder. Files with options of their own are compiled alone.
option(ZEROPAGE_UNITY "Compile several files of a folder at once" ON)
set(files_at_once 6)
function(unite target)
  if(NOT ZEROPAGE_UNITY)
    return()
  endif()
  get_target_property(sources ${target} SOURCES)
  foreach(source IN LISTS sources)
    get_filename_component(folder ${source} ABSOLUTE)
    file(RELATIVE_PATH folder ${CMAKE_CURRENT_SOURCE_DIR} ${folder})
    get_filename_component(folder ${folder} DIRECTORY)
    string(MAKE_C_IDENTIFIER "${folder}" folder)
    math(EXPR files_${folder} "${files_${folder}} + 1")
    math(EXPR group "(${files_${folder}} - 1) / ${files_at_once}")
    set_source_files_properties(${source} PROPERTIES UNITY_GROUP ${folder}_${group})
  endforeach()
  set_target_properties(${target} PROPERTIES UNITY_BUILD ON UNITY_BUILD_MODE GROUP)
endfunction()
