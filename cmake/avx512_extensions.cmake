# source -> extra instruction sets
foreach(kernel bf16 e4m3_row e4m3_weight_only)
  set_source_files_properties(cpp/src/cpu/avx512/linear_${kernel}.cpp
                              PROPERTIES COMPILE_OPTIONS "-mavx512bf16;-mavx512vbmi;-ffp-contract=off")
endforeach()
set_source_files_properties(cpp/src/cpu/avx512/linear_int8_dynamic.cpp
                            PROPERTIES COMPILE_OPTIONS "-mavx512vnni;-ffp-contract=off")
set_source_files_properties(cpp/src/cpu/avx512/bag_forward_vbmi.cpp PROPERTIES COMPILE_OPTIONS -mavx512vbmi)

# Rounding of activations, as in the quantizers: never contracted.
set_source_files_properties(cpp/src/cpu/generic/linear_rows.cpp PROPERTIES COMPILE_OPTIONS -ffp-contract=off)
