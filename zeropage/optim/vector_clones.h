/// \file
/// ZEROPAGE_VECTOR_CLONES before a function makes g++ compile it for plain x86-64, AVX2 and AVX-512, and choose one at
/// load time. Every clone gives the same bits: sources of this room are built without contraction to fused multiply-add
/// and without reassociation (CMakeLists.txt), and all operations used are correctly rounded. It is empty for other
/// compilers and processors, and for sanitizers, whose runtime is not ready when the choice is made.
#pragma once

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && defined(__linux__) && \
    !defined(__SANITIZE_THREAD__) && !defined(__SANITIZE_ADDRESS__)
#define ZEROPAGE_VECTOR_CLONES __attribute__((target_clones("default", "avx2", "arch=x86-64-v4")))
#else
#define ZEROPAGE_VECTOR_CLONES
#endif
