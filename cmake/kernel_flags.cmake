# GCC 12 copies sums of dot products between registers in some tiles, unless told so; tools/inner_loops.py looks.
set(dot_product_flags $<$<CXX_COMPILER_ID:GNU>:-frename-registers> $<$<CXX_COMPILER_ID:GNU>:-fira-region=all>
                      $<$<CXX_COMPILER_ID:GNU>:-fno-tree-ter> -ffp-contract=off)

# source -> extra instruction sets
foreach(kernel linear_bf16 linear_e4m3_row linear_e4m3_weight_only linear_grad_input_bf16 linear_grad_input_e4m3_row
               linear_grad_weight_bf16 linear_grad_weight_e4m3_row)
  set_source_files_properties(cpp/src/cpu/avx512/${kernel}.cpp
                              PROPERTIES COMPILE_OPTIONS "-mavx512bf16;-mavx512vbmi;${dot_product_flags}")
endforeach()
set_source_files_properties(${amx_sources} PROPERTIES COMPILE_OPTIONS "${dot_product_flags}")
set_source_files_properties(cpp/src/cpu/avx2/linear_int8_dynamic.cpp PROPERTIES COMPILE_OPTIONS "${dot_product_flags}")
set_source_files_properties(cpp/src/cpu/avx512/linear_int8_dynamic.cpp
                            cpp/src/cpu/avx512/linear_grad_input_int8_dynamic.cpp
                            PROPERTIES COMPILE_OPTIONS "-mavx512vnni;${dot_product_flags}")
set_source_files_properties(cpp/src/cpu/avx512/bag_forward_vbmi.cpp cpp/src/cpu/avx512/row_lookup_vbmi.cpp
                            PROPERTIES COMPILE_OPTIONS -mavx512vbmi)
foreach(format e4m3 e5m2 int8)
  set_source_files_properties(cpp/src/cpu/avx512/quantize_${format}_row_vbmi.cpp
                              PROPERTIES COMPILE_OPTIONS "-mavx512vbmi;-ffp-contract=off")
endforeach()

# Rounding of activations, of gradients and of updated rows, as in the quantizers, and the epilogue, whose copies for
# numbers and codes give the same bits: never contracted.
set_source_files_properties(cpp/src/cpu/generic/linear_rows.cpp cpp/src/cpu/generic/linear_epilogue.cpp
                            cpp/src/cpu/generic/linear_backward.cpp
                            cpp/src/cpu/generic/bag_backward.cpp cpp/src/cpu/avx512/bag_backward.cpp
                            PROPERTIES COMPILE_OPTIONS -ffp-contract=off)
set_source_files_properties(cpp/src/cpu/avx512/pairwise_dots_bf16.cpp
                            PROPERTIES COMPILE_OPTIONS "-mavx512bf16;${dot_product_flags}")
