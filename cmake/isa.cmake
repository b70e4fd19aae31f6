# A file under csrc/ops is compiled for the ISA that its name says: scalar, avx2, avx512 or amx.
# Each such object defines PIXLEAP_ISA_NAME and PIXLEAP_VECTOR_WIDTH for csrc/simd/vec.h.

if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
  set(PIXLEAP_X86 ON)
endif()

set(PIXLEAP_FLAGS_scalar "")
set(PIXLEAP_FLAGS_avx2 -mavx2 -mfma -mf16c -mbmi2)
set(PIXLEAP_FLAGS_avx512 ${PIXLEAP_FLAGS_avx2} -mavx512f -mavx512bw -mavx512dq -mavx512vl
    -mprefer-vector-width=512)
set(PIXLEAP_FLAGS_amx ${PIXLEAP_FLAGS_avx512} -mavx512bf16 -mamx-tile -mamx-bf16 -mamx-int8)
set(PIXLEAP_WIDTH_scalar 4)
set(PIXLEAP_WIDTH_avx2 8)
set(PIXLEAP_WIDTH_avx512 16)
set(PIXLEAP_WIDTH_amx 16)
if(PIXLEAP_EMULATE_ISA)
  # 16-lane vectors lowered to AVX2, tiles to plain loops: the logic runs where the CPU lacks it.
  set(PIXLEAP_FLAGS_avx512 ${PIXLEAP_FLAGS_avx2} -Wno-psabi)
  set(PIXLEAP_FLAGS_amx ${PIXLEAP_FLAGS_avx512})
endif()

set(PIXLEAP_OPTIMISE -O3)
if(PIXLEAP_SANITIZE)
  set(PIXLEAP_OPTIMISE -O1) # instrumented kernels take minutes each to compile at -O3
endif()

function(pixleap_isa_flags target)
  foreach(source ${PIXLEAP_OP_SOURCES})
    get_filename_component(isa ${source} NAME_WE)
    if(DEFINED PIXLEAP_WIDTH_${isa})
      # GCC 12 warns of its own intrinsics header (maybe-uninitialized).
      # One rounding per operation unless fma() is written: tails equal bodies bit for bit.
      set_source_files_properties(
        ${source} PROPERTIES
        COMPILE_OPTIONS "${PIXLEAP_FLAGS_${isa}};${PIXLEAP_OPTIMISE};-ffp-contract=off;-fno-math-errno;-fno-trapping-math;-Wno-psabi;-Wno-maybe-uninitialized"
        COMPILE_DEFINITIONS "PIXLEAP_ISA_NAME=${isa};PIXLEAP_VECTOR_WIDTH=${PIXLEAP_WIDTH_${isa}}")
    endif()
  endforeach()
  if(PIXLEAP_X86)
    target_compile_definitions(${target} PUBLIC PIXLEAP_X86)
  endif()
  if(PIXLEAP_EMULATE_ISA)
    target_compile_definitions(${target} PUBLIC PIXLEAP_EMULATE_ISA)
  endif()
endfunction()
