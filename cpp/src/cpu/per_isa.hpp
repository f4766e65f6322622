// The generic kernels exist once per instruction set, each copy in a namespace of its level.
#pragma once

#include "octavo/isa.hpp"

#if defined(__x86_64__)
#define OCTAVO_DECLARE_GENERIC(signature) \
  namespace baseline {                    \
  signature;                              \
  }                                       \
  namespace avx2 {                        \
  signature;                              \
  }                                       \
  namespace avx512 {                      \
  signature;                              \
  }
#define OCTAVO_CALL_GENERIC(function, args)             \
  (active_isa() >= Isa::avx512 ? avx512::function(args) \
   : active_isa() == Isa::avx2 ? avx2::function(args)   \
                               : baseline::function(args))
#else
#define OCTAVO_DECLARE_GENERIC(signature) \
  namespace baseline {                    \
  signature;                              \
  }
#define OCTAVO_CALL_GENERIC(function, args) baseline::function(args)
#endif
