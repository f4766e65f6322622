# The CUDA kernels. OCTAVO_CUDA: ON, OFF, or AUTO (where nvcc and a GPU are found).
set(octavo_cuda_wanted ${OCTAVO_CUDA})
if(OCTAVO_CUDA STREQUAL "AUTO")
  find_program(OCTAVO_NVIDIA_SMI nvidia-smi)
  include(CheckLanguage)
  check_language(CUDA)
  if(CMAKE_CUDA_COMPILER AND OCTAVO_NVIDIA_SMI)
    set(octavo_cuda_wanted ON)
  else()
    set(octavo_cuda_wanted OFF)
  endif()
endif()
message(STATUS "octavo: CUDA kernels ${octavo_cuda_wanted}")
if(NOT octavo_cuda_wanted)
  return()
endif()

enable_language(CUDA)
find_package(CUDAToolkit 13.0 REQUIRED)
set(CMAKE_CUDA_STANDARD 17)

# CUTLASS: a directory that holds include/cutlass, else the wheel that the build's Python has.
set(OCTAVO_CUTLASS_DIR "$ENV{OCTAVO_CUTLASS_DIR}" CACHE PATH "CUTLASS 4.2: the directory that holds include/ and tools/")
if(NOT OCTAVO_CUTLASS_DIR)
  find_package(Python REQUIRED COMPONENTS Interpreter)
  execute_process(
    COMMAND ${Python_EXECUTABLE} -c
            "import importlib.util as u; print(u.find_spec('cutlass_library').submodule_search_locations[0] + '/source')"
    OUTPUT_VARIABLE OCTAVO_CUTLASS_DIR OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
endif()
if(NOT EXISTS "${OCTAVO_CUTLASS_DIR}/include/cutlass/cutlass.h")
  message(FATAL_ERROR "CUTLASS headers not found in '${OCTAVO_CUTLASS_DIR}': pip install --no-deps nvidia-cutlass==4.2.0.0, "
                      "or set OCTAVO_CUTLASS_DIR to the directory that holds include/cutlass")
endif()

# ptxas reports registers and spills of every kernel; the launcher keeps the report and fails on a spill.
set(octavo_ptxas_gate ${CMAKE_COMMAND} -E env python3 ${PROJECT_SOURCE_DIR}/tools/ptxas_gate.py)

function(add_cuda_kernels name)
  cmake_parse_arguments(ARG "" "" "SOURCES;ARCHITECTURES" ${ARGN})
  add_library(${name} OBJECT ${ARG_SOURCES})
  set_target_properties(${name} PROPERTIES CUDA_ARCHITECTURES "${ARG_ARCHITECTURES}" CUDA_RUNTIME_LIBRARY Static
                        CUDA_VISIBILITY_PRESET hidden CUDA_COMPILER_LAUNCHER "${octavo_ptxas_gate}")
  target_include_directories(${name} PRIVATE cpp/include cuda)
  target_compile_options(${name} PRIVATE $<$<COMPILE_LANGUAGE:CUDA>:--expt-relaxed-constexpr -Xptxas=-v>)
  target_sources(octavo_engine PRIVATE $<TARGET_OBJECTS:${name}>)
endfunction()

file(GLOB octavo_gemm_sources CONFIGURE_DEPENDS cuda/gemm/*_sm90.cu)
add_cuda_kernels(octavo_cuda_sm90 SOURCES ${octavo_gemm_sources} ARCHITECTURES 90a-real)
target_include_directories(octavo_cuda_sm90 SYSTEM PRIVATE ${OCTAVO_CUTLASS_DIR}/include
                           ${OCTAVO_CUTLASS_DIR}/tools/util/include)
# Their waits for the kernels before them, without effect where a launch did not start early.
target_compile_definitions(octavo_cuda_sm90 PRIVATE CUTLASS_ENABLE_GDC_FOR_SM90)
# The SIMT kernels round each operation once, as the CPU's do, and share its codecs, which are C++20.
file(GLOB simt_sources CONFIGURE_DEPENDS cuda/quantize/*.cu cuda/norm/*.cu cuda/embedding/*.cu
     cuda/pairwise/*.cu)
add_cuda_kernels(octavo_cuda_simt SOURCES ${simt_sources} cuda/gemm/sum_slices.cu ARCHITECTURES 80-real 90-real 90-virtual)
set_target_properties(octavo_cuda_simt PROPERTIES CUDA_STANDARD 20)
target_include_directories(octavo_cuda_simt PRIVATE cpp/src)
target_compile_options(octavo_cuda_simt PRIVATE $<$<COMPILE_LANGUAGE:CUDA>:-fmad=false>)
file(GLOB octavo_cuda_launchers CONFIGURE_DEPENDS cuda/*.cpp cuda/device/*.cpp cuda/gemm/*.cpp cuda/embedding/*.cpp)
list(FILTER octavo_cuda_launchers EXCLUDE REGEX "tile_choice|measured_tiles|layer_plan")  # which every build has
target_sources(octavo_engine PRIVATE ${octavo_cuda_launchers})
target_compile_definitions(octavo_engine PUBLIC OCTAVO_WITH_CUDA)
target_link_libraries(octavo_engine PUBLIC CUDA::cudart_static)
