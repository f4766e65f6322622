// Which instruction set the process runs with.
#pragma once

#include <cstdint>
#include <string>

namespace octavo {

// Levels, each with all below; the generic kernels are compiled for the first three.
// OCTAVO_ISA=baseline|avx2|avx512|amx forces one (never above the CPU's own).
enum class Isa : std::uint8_t { baseline, avx2, avx512, amx };

// What hand-written kernels ask for beyond a level.
struct CpuFeatures {
  bool avx2 = false;         // with FMA and F16C
  bool avx512 = false;       // F, BW, VL, DQ
  bool avx512_bf16 = false;  // vdpbf16ps
  bool avx512_vnni = false;  // vpdpbusd
  bool avx512_vbmi = false;  // vpermi2b
  bool amx = false;          // tiles of BF16 and INT8, beside all of the above
};

// Every feature by name.
struct NamedFeature {
  const char* name;
  bool CpuFeatures::* has;
};
inline constexpr NamedFeature kNamedFeatures[] = {
    {"avx2", &CpuFeatures::avx2},
    {"avx512", &CpuFeatures::avx512},
    {"avx512_bf16", &CpuFeatures::avx512_bf16},
    {"avx512_vnni", &CpuFeatures::avx512_vnni},
    {"avx512_vbmi", &CpuFeatures::avx512_vbmi},
    {"amx", &CpuFeatures::amx},
};

const CpuFeatures& cpu_features();  // the machine's, cut down to the forced level

// While it lives, cpu_features() of this thread are these: asks what a kernel would need without having it.
class PretendedFeatures {
 public:
  explicit PretendedFeatures(const CpuFeatures& features);
  ~PretendedFeatures();
  PretendedFeatures(const PretendedFeatures&) = delete;
  PretendedFeatures& operator=(const PretendedFeatures&) = delete;
};

Isa active_isa();
const char* to_string(Isa isa);
bool isa_from_string(const std::string& name, Isa& isa);  // false for an unknown name

// Forces a level from now on (tests). False when the CPU or the name cannot do it; then nothing changes.
bool force_isa(const std::string& name);

}  // namespace octavo
