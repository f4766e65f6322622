# The CUDA kernels (target octavo_cuda) and the toolchain that compiles them.
