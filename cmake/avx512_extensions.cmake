# GCC 12 copies sums of dot products between registers in some tiles, unless told so; tools/inner_loops.py looks.
set(dot_product_flags $<$<CXX_COMPILER_ID:GNU>:-frename-registers> $<$<CXX_COMPILER_ID:GNU>:-fira-region=all>
                      $<$<CXX_COMPILER_ID:GNU>:-fno-tree-ter> -ffp-contract=off)

# source -> extra instruction sets
foreach(kernel bf16 e4m3_row e4m3_weight_only)
  set_source_files_properties(cpp/src/cpu/avx512/linear_${kernel}.cpp
                              PROPERTIES COMPILE_OPTIONS "-mavx512bf16;-mavx512vbmi;${dot_product_flags}")
endforeach()
set_source_files_properties(cpp/src/cpu/avx512/linear_int8_dynamic.cpp
                            PROPERTIES COMPILE_OPTIONS "-mavx512vnni;${dot_product_flags}")
set_source_files_properties(cpp/src/cpu/avx512/bag_forward_vbmi.cpp PROPERTIES COMPILE_OPTIONS -mavx512vbmi)

# Rounding of activations and of updated rows, as in the quantizers: never contracted.
set_source_files_properties(cpp/src/cpu/generic/linear_rows.cpp cpp/src/cpu/generic/bag_backward.cpp
                            cpp/src/cpu/avx512/bag_backward.cpp PROPERTIES COMPILE_OPTIONS -ffp-contract=off)
