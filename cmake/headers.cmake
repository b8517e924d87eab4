# The header libraries: those of the system, or, where one is missing, its pinned source. So no machine needs root or a
# package manager. Defines zeropage_headers, which has their folders. They are searched last, as the system's are: torch
# has an fmt of its own.
#
# ZEROPAGE_TARBALLS, or the variable of the environment: a folder that has the files below, for machines without
# network. They are all taken from there then, whatever the system has, and their digests are not checked: the folder
# is yours.
include(FetchContent)
if(POLICY CMP0135)  # what is extracted is as new as its extraction
  cmake_policy(SET CMP0135 NEW)
endif()
set(ZEROPAGE_TARBALLS "$ENV{ZEROPAGE_TARBALLS}" CACHE PATH "A folder with the sources of the header libraries (cmake/headers.cmake)")
set(header_archive http://deb.debian.org/debian/pool/main)

add_library(zeropage_headers INTERFACE)

# header_library(HEADER FOLDER_IN_THE_SOURCE FOLDER_OF_THE_ARCHIVE FILE SHA256)
function(header_library header subfolder folder file sha256)
  string(MAKE_C_IDENTIFIER "${folder}" name)
  if(NOT ZEROPAGE_TARBALLS)
    find_path(ZEROPAGE_INCLUDE_${name} ${header})
    if(ZEROPAGE_INCLUDE_${name})
      target_include_directories(zeropage_headers SYSTEM INTERFACE ${ZEROPAGE_INCLUDE_${name}})
      return()
    endif()
    message(STATUS "${header} is not installed: fetching ${file}")
    string(REPLACE "+" "%2b" url ${header_archive}/${folder}/${file})
    set(source URL ${url} URL_HASH SHA256=${sha256})
  elseif(EXISTS ${ZEROPAGE_TARBALLS}/${file})
    set(source URL ${ZEROPAGE_TARBALLS}/${file})
  else()
    message(FATAL_ERROR "ZEROPAGE_TARBALLS: there is no ${file} in ${ZEROPAGE_TARBALLS}. It is ${header_archive}/${folder}/${file}, "
      "SHA-256 ${sha256}")
  endif()
  # There is no CMakeLists.txt in that folder: headers are all that is taken.
  FetchContent_Declare(${name} ${source} SOURCE_SUBDIR no_project)
  FetchContent_MakeAvailable(${name})
  string(TOLOWER ${name} name)
  if(NOT EXISTS ${${name}_SOURCE_DIR}/${subfolder}/${header})
    message(FATAL_ERROR "${file} has no ${subfolder}/${header}")
  endif()
  target_compile_options(zeropage_headers INTERFACE "SHELL:-idirafter ${${name}_SOURCE_DIR}/${subfolder}")
endfunction()

header_library(nlohmann/json.hpp include n/nlohmann-json3 nlohmann-json3_3.11.2.orig.tar.gz
  d69f9deb6a75e2580465c6c4c5111b89c4dc2fa94e3a85fcd2ffcd9a143d9273)
header_library(fmt/format.h include f/fmtlib fmtlib_9.1.0+ds1.orig.tar.gz
  84ce1c2d0be3a9863935137969dcec6970125caac032f82474640bfc81463583)
header_library(spdlog/spdlog.h include s/spdlog spdlog_1.10.0+ds.orig.tar.xz
  620ca6842b5c21014470bd42eb4716024674214fb973b5ffa3aaea33310ad327)
header_library(CLI/CLI.hpp include c/cli11 cli11_2.1.2+ds.orig.tar.xz
  8143d20b688e98ccce8e24562d3b68e5f47c12e896c42c7ca8553dbde5bed55d)
header_library(xxhash.h . x/xxhash xxhash_0.8.1.orig.tar.gz
  3bb6b7d6f30c591dd65aaaff1c8b7a5b94d81687998ca9400082c739a690436c)
header_library(hwy/highway.h . h/highway highway_1.0.3.orig.tar.gz
  566fc77315878473d9a6bd815f7de78c73734acdcb745c3dde8579560ac5440e)
