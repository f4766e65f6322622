# source -> extra instruction sets

# Rounding of activations, as in the quantizers: never contracted.
set_source_files_properties(cpp/src/cpu/generic/linear_rows.cpp PROPERTIES COMPILE_OPTIONS -ffp-contract=off)
