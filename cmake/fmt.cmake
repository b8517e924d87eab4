# fmt, compiled once in base/fmt_library.cc instead of in every file. Its functions become symbols there: they are
# compiled as inline ones of fmt's headers, and not inlined. All other files see declarations only, which halves the
# time that most of them take to compile. torch brings headers of another version of fmt, in another namespace: what is
# compiled with torch's headers needs the file as well.
set(fmt_library zeropage/base/fmt_library.cc)
set(fmt_options -O2 -fno-inline $<$<CXX_COMPILER_ID:GNU>:-fno-ipa-sra>)
set_source_files_properties(${fmt_library} PROPERTIES
  SKIP_PRECOMPILE_HEADERS ON COMPILE_DEFINITIONS FMT_HEADER_ONLY COMPILE_OPTIONS "${fmt_options}")
target_compile_definitions(zeropage_core PUBLIC SPDLOG_FMT_EXTERNAL)
