# CUDA kernels in the same library: sm_80, sm_90a and PTX, static runtime, no driver needed to import.

set(PIXLEAP_CUDA_ARCHITECTURES "80-real;90a-real;80-virtual" CACHE STRING "CUDA architectures")
option(PIXLEAP_CUDA_EMULATE
       "Compile the CUDA kernels as C++ and run them on the CPU (csrc/cuda/emulate), to test them" OFF)
set(PIXLEAP_CUDA_ENABLED OFF)
if(PIXLEAP_CUDA_EMULATE)
  if(NOT PIXLEAP_X86 OR NOT CMAKE_CXX_COMPILER_ID STREQUAL "GNU" OR PIXLEAP_CUDA STREQUAL "ON")
    message(FATAL_ERROR "PIXLEAP_CUDA_EMULATE=ON needs x86-64, GCC and PIXLEAP_CUDA=OFF")
  endif()
elseif(NOT PIXLEAP_CUDA STREQUAL "OFF")
  include(CheckLanguage)
  check_language(CUDA)
  if(CMAKE_CUDA_COMPILER)
    set(CMAKE_CUDA_ARCHITECTURES ${PIXLEAP_CUDA_ARCHITECTURES})
    enable_language(CUDA)
    set(CMAKE_CUDA_STANDARD 20)
    set(CMAKE_CUDA_RUNTIME_LIBRARY Static)
    set(PIXLEAP_CUDA_ENABLED ON)
  elseif(PIXLEAP_CUDA STREQUAL "ON")
    message(FATAL_ERROR "PIXLEAP_CUDA=ON, but no nvcc was found (set CUDACXX or PATH)")
  endif()
endif()
message(STATUS "pixleap: CUDA kernels ${PIXLEAP_CUDA_ENABLED}, emulated ${PIXLEAP_CUDA_EMULATE}")

# .cu files as C++. Contraction as nvcc does it, which takes FMA; -fdata-sections and the linker
# script shared.ld find the __shared__ variables.
set(PIXLEAP_EMULATE_DIR ${CMAKE_CURRENT_SOURCE_DIR}/csrc/cuda/emulate)
function(pixleap_emulated_sources)
  set_source_files_properties(
    ${ARGN} TARGET_DIRECTORY pixleap_core
    PROPERTIES LANGUAGE CXX
               COMPILE_OPTIONS
               "-x;c++;-I${PIXLEAP_EMULATE_DIR};-mavx2;-mfma;-mf16c;-ffp-contract=fast;-fdata-sections;-Wno-unknown-pragmas;-Wno-sign-compare;-Wno-unused-variable")
endfunction()

function(pixleap_cuda_target target)
  if(PIXLEAP_CUDA_ENABLED)
    target_sources(${target} PRIVATE ${PIXLEAP_CUDA_SOURCES})
    target_compile_definitions(${target} PUBLIC PIXLEAP_CUDA)
    if("${PIXLEAP_CUDA_ARCHITECTURES}" MATCHES "90a")
      target_compile_definitions(${target} PRIVATE PIXLEAP_CUDA_SM90A)
    endif()
    target_compile_options(
      ${target} PRIVATE $<$<COMPILE_LANGUAGE:CUDA>:--extended-lambda -Xcompiler=-Wall
                        -Xcompiler=-fvisibility=hidden --resource-usage>)
    set_target_properties(${target} PROPERTIES CUDA_VISIBILITY_PRESET hidden)
  elseif(PIXLEAP_CUDA_EMULATE)
    file(GLOB engine CONFIGURE_DEPENDS csrc/cuda/emulate/*.cpp)
    pixleap_emulated_sources(${PIXLEAP_CUDA_SOURCES})
    # GCC 12 warns of its own std::string (restrict).
    set_source_files_properties(${engine} PROPERTIES COMPILE_OPTIONS "-Wno-restrict")
    target_sources(${target} PRIVATE ${PIXLEAP_CUDA_SOURCES} ${engine})
    target_compile_definitions(${target} PUBLIC PIXLEAP_CUDA_EMULATE)
  endif()
endfunction()

function(pixleap_cuda_link target)
  if(PIXLEAP_CUDA_ENABLED)
    find_package(CUDAToolkit REQUIRED)
    target_link_libraries(${target} PRIVATE CUDA::cudart_static)
    target_link_options(${target} PRIVATE -Wl,--exclude-libs,ALL)
  elseif(PIXLEAP_CUDA_EMULATE)
    target_link_options(${target} PRIVATE -Wl,-T,${PIXLEAP_EMULATE_DIR}/shared.ld)
  endif()
endfunction()
