#include "roofs.hpp"

#include <immintrin.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <thread>
#include <vector>

namespace {

constexpr std::int64_t kLine = 64, kHugePage = 2 << 20;

double now_s() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

struct Free {
  void operator()(void* p) const { std::free(p); }
};

// Zeroed memory on huge pages, so that first touch is not timed.
std::unique_ptr<std::uint8_t, Free> touched(std::int64_t bytes) {
  const std::int64_t whole = (bytes + kHugePage - 1) / kHugePage * kHugePage;
  void* p = std::aligned_alloc(kHugePage, static_cast<std::size_t>(whole));
  if (p == nullptr) return nullptr;
  (void)madvise(p, static_cast<std::size_t>(whole), MADV_HUGEPAGE);
  std::memset(p, 1, static_cast<std::size_t>(whole));
  return std::unique_ptr<std::uint8_t, Free>(static_cast<std::uint8_t*>(p));
}

// prepare(thread) makes each thread's work() -> units done; all start together and repeat it for `ms`. Units/s in all.
template <class Prepare>
double rate(int threads, double ms, Prepare prepare) {
  std::atomic<int> ready{0};
  std::vector<double> rates(static_cast<std::size_t>(threads));
  const auto body = [&](int thread) {
    auto work = prepare(thread);
    work();
    ++ready;
    while (ready.load() < threads) _mm_pause();
    double units = 0;
    const double start = now_s();
    double end = start;
    while (end - start < ms * 1e-3) {
      units += work();
      end = now_s();
    }
    rates[static_cast<std::size_t>(thread)] = units / (end - start);
  };
  std::vector<std::thread> team;
  for (int t = 1; t < threads; ++t) team.emplace_back(body, t);
  body(0);
  for (std::thread& member : team) member.join();
  double sum = 0;
  for (const double r : rates) sum += r;
  return sum;
}

void copy_non_temporal(std::uint8_t* to, const std::uint8_t* from, std::int64_t bytes) {
  for (std::int64_t i = 0; i < bytes; i += kLine) {
    for (int part = 0; part < 4; ++part) {
      const __m128i v = _mm_load_si128(reinterpret_cast<const __m128i*>(from + i) + part);
      _mm_stream_si128(reinterpret_cast<__m128i*>(to + i) + part, v);
    }
  }
  _mm_sfence();
}

[[gnu::target("avx2")]] void copy_cached(std::uint8_t* to, const std::uint8_t* from, std::int64_t bytes) {
  for (std::int64_t i = 0; i < bytes; i += kLine) {
    const __m256i a = _mm256_load_si256(reinterpret_cast<const __m256i*>(from + i));
    const __m256i b = _mm256_load_si256(reinterpret_cast<const __m256i*>(from + i) + 1);
    _mm256_store_si256(reinterpret_cast<__m256i*>(to + i), a);
    _mm256_store_si256(reinterpret_cast<__m256i*>(to + i) + 1, b);
  }
}

[[gnu::target("avx2")]] void stream_lines(const std::uint8_t* from, std::uint8_t* to, std::int64_t lines, int ratio) {
  for (std::int64_t i = 0; i < lines; ++i) {
    __m256i low = _mm256_setzero_si256(), high = low;
    for (int line = 0; line < ratio; ++line, from += kLine) {
      _mm_prefetch(reinterpret_cast<const char*>(from) + 4096, _MM_HINT_T0);
      low = _mm256_xor_si256(low, _mm256_load_si256(reinterpret_cast<const __m256i*>(from)));
      high = _mm256_xor_si256(high, _mm256_load_si256(reinterpret_cast<const __m256i*>(from) + 1));
    }
    _mm256_stream_si256(reinterpret_cast<__m256i*>(to + i * kLine), low);
    _mm256_stream_si256(reinterpret_cast<__m256i*>(to + i * kLine) + 1, high);
  }
  _mm_sfence();
}

// One instruction on `chains` independent accumulators; inline assembly, since g++ 12 copies accumulators of
// intrinsics. 16 chains cover latency x throughput of every CPU that has these.
#define OCTAVO_CHAINS(STEP) \
  STEP(0)                   \
  STEP(1)                   \
  STEP(2) STEP(3) STEP(4) STEP(5) STEP(6) STEP(7) STEP(8) STEP(9) STEP(10) STEP(11) STEP(12) STEP(13) STEP(14) STEP(15)
#define OCTAVO_PEAK_LOOP(NAME, TARGET, WIDTH, INSTRUCTION)    \
  [[gnu::target(TARGET)]] void NAME(std::int64_t steps) {     \
    typedef float Vector __attribute__((vector_size(WIDTH))); \
    Vector x{}, y{};                                          \
    Vector a[16] = {};                                        \
    OCTAVO_CHAINS(OCTAVO_LOAD)                                \
    for (std::int64_t i = 0; i < steps; ++i) {                \
      asm volatile("" : "+v"(x), "+v"(y));                    \
      OCTAVO_CHAINS(INSTRUCTION)                              \
    }                                                         \
    OCTAVO_CHAINS(OCTAVO_KEEP)                                \
  }
#define OCTAVO_LOAD(i) Vector a##i = a[i];
#define OCTAVO_KEEP(i) asm volatile("" : : "v"(a##i));
#define OCTAVO_FMA(i) asm volatile("vfmadd231ps %1, %2, %0" : "+v"(a##i) : "v"(x), "v"(y));
#define OCTAVO_BF16(i) asm volatile("vdpbf16ps %1, %2, %0" : "+v"(a##i) : "v"(x), "v"(y));
#define OCTAVO_INT8(i) asm volatile("vpdpbusd %1, %2, %0" : "+v"(a##i) : "v"(x), "v"(y));

OCTAVO_PEAK_LOOP(fma_256, "avx2,fma", 32, OCTAVO_FMA)
OCTAVO_PEAK_LOOP(fma_512, "avx512f", 64, OCTAVO_FMA)
OCTAVO_PEAK_LOOP(bf16_512, "avx512f,avx512bf16", 64, OCTAVO_BF16)
OCTAVO_PEAK_LOOP(int8_512, "avx512f,avx512vnni", 64, OCTAVO_INT8)

// Four tiles of sums, as many as two tiles of each operand leave.
struct alignas(64) Tiles {
  std::uint8_t palette = 1, rest[15] = {};
  std::uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  std::uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
#define OCTAVO_TILE_LOOP(NAME, INSTRUCTION)                                                                        \
  [[gnu::target("amx-tile,amx-bf16,amx-int8")]] void NAME(std::int64_t steps) {                                    \
    const Tiles tiles;                                                                                             \
    asm volatile("ldtilecfg %0" : : "m"(tiles));                                                                   \
    asm volatile(                                                                                                  \
        "tilezero %%tmm0\n\ttilezero %%tmm1\n\ttilezero %%tmm2\n\ttilezero %%tmm3\n\t"                             \
        "tilezero %%tmm4\n\ttilezero %%tmm5\n\ttilezero %%tmm6\n\ttilezero %%tmm7" ::);                            \
    for (std::int64_t i = 0; i < steps; ++i)                                                                       \
      asm volatile(INSTRUCTION " %%tmm6, %%tmm4, %%tmm0\n\t" INSTRUCTION " %%tmm7, %%tmm4, %%tmm1\n\t" INSTRUCTION \
                               " %%tmm6, %%tmm5, %%tmm2\n\t" INSTRUCTION " %%tmm7, %%tmm5, %%tmm3" ::);            \
    asm volatile("tilerelease" ::);                                                                                \
  }
OCTAVO_TILE_LOOP(bf16_tiles, "tdpbf16ps")
OCTAVO_TILE_LOOP(int8_tiles, "tdpbusd")

bool have_tiles() {
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM
  return __builtin_cpu_supports("amx-tile") && __builtin_cpu_supports("amx-bf16") &&
         __builtin_cpu_supports("amx-int8") && syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

// Exact INT8 products without VNNI: pairs of 16-bit codes, multiplied and added. Twelve chains leave registers for the
// operands and a product.
#define OCTAVO_INT8_PAIR(i) \
  asm volatile("vpmaddwd %2, %3, %1\n\tvpaddd %1, %0, %0" : "+x"(a##i), "=&x"(product) : "x"(x), "x"(y));
[[gnu::target("avx2")]] void int8_256(std::int64_t steps) {
  __m256i x{}, y{}, product{};
  __m256i a0{}, a1{}, a2{}, a3{}, a4{}, a5{}, a6{}, a7{}, a8{}, a9{}, a10{}, a11{};
  for (std::int64_t i = 0; i < steps; ++i) {
    asm volatile("" : "+x"(x), "+x"(y));
    OCTAVO_INT8_PAIR(0)
    OCTAVO_INT8_PAIR(1)
    OCTAVO_INT8_PAIR(2)
    OCTAVO_INT8_PAIR(3)
    OCTAVO_INT8_PAIR(4)
    OCTAVO_INT8_PAIR(5)
    OCTAVO_INT8_PAIR(6)
    OCTAVO_INT8_PAIR(7)
    OCTAVO_INT8_PAIR(8)
    OCTAVO_INT8_PAIR(9)
    OCTAVO_INT8_PAIR(10)
    OCTAVO_INT8_PAIR(11)
  }
}

double peak(int threads, double ms, void (*loop)(std::int64_t), double flops_per_step) {
  constexpr std::int64_t steps = 20000;
  return 1e-9 * rate(threads, ms, [&](int) {
           return [=] {
             loop(steps);
             return static_cast<double>(steps) * flops_per_step;
           };
         });
}

// Million rows/s of whole rows at random from `base`, prefetched 64 rows ahead.
template <_mm_hint hint>
double gather(int threads, const std::uint8_t* base, std::int64_t table_bytes, std::int64_t row_bytes, double ms) {
  constexpr std::int64_t ahead = 64, batch = 1 << 14, indices = 1 << 20;
  const std::int64_t lines = (row_bytes + kLine - 1) / kLine;
  const std::int64_t rows = table_bytes / (lines * kLine);
  if (rows == 0) return 0;
  return 1e-6 * rate(threads, ms, [&](int thread) {
           std::vector<std::int64_t> offsets(indices + ahead);
           std::uint64_t state = 0x9e3779b97f4a7c15ull * static_cast<std::uint64_t>(thread + 1);
           for (std::int64_t& offset : offsets) {
             state = state * 6364136223846793005ull + 1442695040888963407ull;
             offset = static_cast<std::int64_t>((state >> 33) % static_cast<std::uint64_t>(rows)) * lines * kLine;
           }
           return [=, at = std::int64_t{0}, offsets = std::move(offsets)]() mutable {
             const std::int64_t* row = offsets.data() + at;
             __m128i sum = _mm_setzero_si128();
             for (std::int64_t r = 0; r < batch; ++r) {
               for (std::int64_t l = 0; l < lines; ++l)
                 _mm_prefetch(reinterpret_cast<const char*>(base + row[r + ahead] + l * kLine), hint);
               for (std::int64_t l = 0; l < lines; ++l)
                 sum = _mm_xor_si128(sum, *reinterpret_cast<const __m128i*>(base + row[r] + l * kLine));
             }
             asm volatile("" : : "x"(sum));
             at = (at + batch) % indices;
             return static_cast<double>(batch);
           };
         });
}

}  // namespace

extern "C" {

double octavo_roof_copy(int threads, std::int64_t bytes, bool non_temporal, double ms) {
  const std::int64_t part = (bytes / threads + kLine - 1) / kLine * kLine;
  const bool wide = __builtin_cpu_supports("avx2");
  return 1e-9 * rate(threads, ms, [&](int) {
           return [from = touched(part), to = touched(part), part, non_temporal, wide] {
             if (from == nullptr || to == nullptr) return 0.0;
             if (non_temporal)
               copy_non_temporal(to.get(), from.get(), part);
             else if (wide)
               copy_cached(to.get(), from.get(), part);
             else
               std::memcpy(to.get(), from.get(), static_cast<std::size_t>(part));
             return 2.0 * static_cast<double>(part);
           };
         });
}

void octavo_stream_once(int threads, const void* from, void* to, std::int64_t lines, int ratio) {
  const auto part = [=](int thread) {
    const std::int64_t begin = lines * thread / threads, end = lines * (thread + 1) / threads;
    stream_lines(static_cast<const std::uint8_t*>(from) + begin * ratio * kLine,
                 static_cast<std::uint8_t*>(to) + begin * kLine, end - begin, ratio);
  };
  std::vector<std::thread> team;
  for (int t = 1; t < threads; ++t) team.emplace_back(part, t);
  part(0);
  for (std::thread& member : team) member.join();
}

double octavo_roof_gather(int threads, std::int64_t table_bytes, std::int64_t row_bytes, double ms) {
  const auto table = touched(table_bytes);
  return table == nullptr ? 0 : gather<_MM_HINT_T1>(threads, table.get(), table_bytes, row_bytes, ms);
}

double octavo_roof_lines(int threads, std::int64_t table_bytes, double ms) {
  const auto table = touched(table_bytes);
  double best = 0;
  for (std::int64_t lines = 1; table != nullptr && lines <= 8; lines *= 2) {
    const auto keep = [&](double rows) {
      best = rows * static_cast<double>(lines) > best ? rows * static_cast<double>(lines) : best;
    };
    keep(gather<_MM_HINT_T0>(threads, table.get(), table_bytes, lines * kLine, ms));
    keep(gather<_MM_HINT_T1>(threads, table.get(), table_bytes, lines * kLine, ms));
    keep(gather<_MM_HINT_NTA>(threads, table.get(), table_bytes, lines * kLine, ms));
  }
  return best;
}

double octavo_roof_fp32(int threads, double ms) {
  if (__builtin_cpu_supports("avx512f")) return peak(threads, ms, fma_512, 16 * 16 * 2);
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return peak(threads, ms, fma_256, 16 * 8 * 2);
  return 0;
}

double octavo_roof_bf16(int threads, double ms) {
  if (have_tiles()) return peak(threads, ms, bf16_tiles, 4 * 16 * 16 * 32 * 2);
  return __builtin_cpu_supports("avx512bf16") ? peak(threads, ms, bf16_512, 16 * 32 * 2) : 0;
}

double octavo_roof_int8(int threads, double ms) {
  if (have_tiles()) return peak(threads, ms, int8_tiles, 4 * 16 * 16 * 64 * 2);
  if (__builtin_cpu_supports("avx512vnni")) return peak(threads, ms, int8_512, 16 * 64 * 2);
  return __builtin_cpu_supports("avx2") ? peak(threads, ms, int8_256, 12 * 16 * 2) : 0;
}

}  // extern "C"
